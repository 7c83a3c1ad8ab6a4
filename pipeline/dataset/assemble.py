"""Writes all chunks into the dataset's files; the same rows give the same bytes.

Files go to a new directory, which `pipeline.files.atomic_directory` then exchanges for the old one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from pipeline.dataset.arrow_schema import RECORDS, REJECTIONS
from pipeline.dataset.near_duplicates import find_repeats, separate_repeats
from pipeline.dataset.shards import ShardWriter, image_schema, with_images
from pipeline.dataset.staging import Staging
from pipeline.mbeir.image_store import ImageStore
from schemas.errors import CotError
from schemas.manifest import DataFile, TaskCounts
from schemas.mbeir import Split
from schemas.os_errors import explained
from schemas.record import Route

ROW_GROUP: Final = 1000
IMAGE_ROW_GROUP: Final = 100
_IMAGE_ROWS_READ: Final = 16
"""Rows whose images are held in memory before they are written."""

_IMAGE_SHARD_ROWS: Final = 5_000


class AssemblyError(CotError):
    """Shards that cannot be written."""


@dataclass(frozen=True)
class Assembled:
    files: tuple[DataFile, ...]
    tasks: tuple[TaskCounts, ...]
    records: int
    rejections: int


def assemble(
    staging: Staging,
    directory: Path,
    *,
    split: Split,
    rows_per_shard: int,
    bypass_duplicates: bool = False,
    images: ImageStore | None = None,
    image_group_bytes: int = 100_000_000,
) -> Assembled:
    """Writes ``data/``, ``rejected/`` and, with `images`, ``with_images/`` below `directory`.

    A row group of ``with_images/`` contains at most `image_group_bytes` of images (or one image): readers load a whole group,
    and the Hub's viewer at most 300 MB.

    Of records with the same query and answer the first is kept; the others become rejections (`near_duplicate`), and with
    `bypass_duplicates` also bypass records.
    """
    repeated = find_repeats(staging)
    counts: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    try:
        total = sum(len(keys) for keys in staging.keys.values()) - (
            0 if bypass_duplicates else sum(map(len, repeated.values()))
        )
        data = ShardWriter(directory / "data", split, RECORDS, total=total, rows_per_shard=rows_per_shard, row_group=ROW_GROUP)
        rejection_counts = [len(staging.get(number)[1]) + len(repeated.get(number, ())) for number in range(len(staging))]
        rejected = ShardWriter(
            directory / "rejected",
            split,
            REJECTIONS,
            total=sum(rejection_counts),
            rows_per_shard=rows_per_shard,
            row_group=ROW_GROUP,
        )
        pictured = None
        if images is not None:
            pictured = ShardWriter(
                directory / "with_images",
                split,
                image_schema(),
                total=total,
                rows_per_shard=min(rows_per_shard, _IMAGE_SHARD_ROWS),
                row_group=IMAGE_ROW_GROUP,
                group_bytes=image_group_bytes,
            )
        for records, rejections in separate_repeats(staging, repeated, bypass=bypass_duplicates):
            _count(counts, records, rejections)
            data.write(records)
            rejected.write(rejections)
            if pictured is not None and images is not None:
                for start in range(0, len(records), _IMAGE_ROWS_READ):
                    pictured.write(with_images(records.slice(start, _IMAGE_ROWS_READ), images))
        files = [*data.close(), *rejected.close(), *(pictured.close() if pictured is not None else ())]
    except OSError as error:
        cause, remedy = explained(error)
        raise AssemblyError(
            f"the dataset could not be written to {directory}: {cause}",
            f"{remedy} and run the same command again: the published dataset is untouched and every answer is in the ledger",
        ) from error
    tasks = tuple(_task_counts(key, counter) for key, counter in sorted(counts.items()))
    return Assembled(tuple(files), tasks, total, sum(rejection_counts))


def _count(counts: dict[tuple[str, int], Counter[str]], records: pa.Table, rejections: pa.Table) -> None:
    for table, names in ((records, ("route",)), (rejections, ("stage", "reason"))):
        grouped = table.group_by(["dataset", "task_id", *names]).aggregate([([], "count_all")])
        for row in grouped.to_pylist():
            counts[row["dataset"], row["task_id"]][": ".join(row[name] for name in names)] += row["count_all"]
    ids: dict[tuple[str, int], set[str]] = defaultdict(set)
    for table in (records, rejections):
        for dataset, task, identifier in zip(
            table["dataset"].to_pylist(), table["task_id"].to_pylist(), table["id"].to_pylist(), strict=True
        ):
            ids[dataset, task].add(identifier)
    for key, of_task in ids.items():  # a query never spans two chunks
        counts[key]["queries"] += len(of_task)


def _task_counts(key: tuple[str, int], counter: Counter[str]) -> TaskCounts:
    plain = {"queries", str(Route.REASONING), str(Route.BYPASS)}
    return TaskCounts(
        dataset=key[0],
        task_id=key[1],
        queries=counter["queries"],
        reasoning=counter[str(Route.REASONING)],
        bypass=counter[str(Route.BYPASS)],
        rejected={name: counter[name] for name in sorted(counter) if name not in plain},
    )
