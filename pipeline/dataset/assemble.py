"""All chunks into the dataset's files: near-duplicates out, fixed shards, the same bytes for the same rows.

Files are written into a directory of their own, which `pipeline.files.atomic_directory` then puts in the dataset's place.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.arrow_schema import RECORDS, REJECTIONS
from pipeline.dataset.shards import ShardWriter, image_schema, with_images
from pipeline.dataset.staging import Staging
from pipeline.mbeir.images import ImageStore
from pipeline.traces.families import family_of
from schemas.errors import CotError
from schemas.manifest import DataFile, TaskCounts
from schemas.os_errors import explained
from schemas.record import EMB_TOKEN, Route, ScreenReason, Stage
from schemas.trace import FacetText, Trace

ROW_GROUP: Final = 1000
IMAGE_ROW_GROUP: Final = 100
_IMAGE_ROWS_READ: Final = 16
"""Whose images are held before they are written."""

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
    split: str,
    rows_per_shard: int,
    bypass_duplicates: bool = False,
    images: ImageStore | None = None,
    image_group_bytes: int = 100_000_000,
) -> Assembled:
    """Writes ``data/``, ``rejected/`` and, with `images`, ``with_images/`` below `directory`.

    A row group of ``with_images/`` holds no more than `image_group_bytes` of images (or one image): a reader, and the Hub's
    viewer, which takes 300 MB at most, reads a whole group at once.

    Of records with the same query and answer the first in order stays; the others become rejections (`near_duplicate`), and
    with `bypass_duplicates` bypass records beside them.
    """
    repeated = _repeated(staging)
    counts: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    try:
        total = sum(len(keys) for keys in staging.keys.values()) - (
            0 if bypass_duplicates else sum(map(len, repeated.values()))
        )
        data = ShardWriter(directory / "data", split, RECORDS, total=total, rows_per_shard=rows_per_shard, row_group=ROW_GROUP)
        refused = [len(staging.get(number)[1]) + len(repeated.get(number, ())) for number in range(len(staging))]
        rejected = ShardWriter(
            directory / "rejected", split, REJECTIONS, total=sum(refused), rows_per_shard=rows_per_shard, row_group=ROW_GROUP
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
        for records, rejections in _chunks(staging, repeated, bypass_duplicates):
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
    return Assembled(tuple(file for file in files), tasks, total, sum(refused))


def _repeated(staging: Staging) -> dict[int, NDArray[np.int64]]:
    """Chunk -> rows whose near-duplicate key stood before."""
    numbers = range(len(staging))
    lengths = [len(staging.keys[number]) for number in numbers]
    keys = np.concatenate([staging.keys[number] for number in numbers]) if lengths else np.empty(0, np.int64)
    _, first = np.unique(keys, return_index=True)
    is_repeat = np.ones(len(keys), bool)
    is_repeat[first] = False
    is_repeat[keys == 0] = False
    found, start = {}, 0
    for number, length in zip(numbers, lengths, strict=True):
        rows = np.flatnonzero(is_repeat[start : start + length])
        if len(rows):
            found[number] = rows
        start += length
    return found


def _chunks(
    staging: Staging, repeated: dict[int, NDArray[np.int64]], bypass_duplicates: bool
) -> Iterator[tuple[pa.Table, pa.Table]]:
    for number in range(len(staging)):
        records, rejections = staging.get(number)
        rows = repeated.get(number)
        if rows is not None:
            again = records.take(pa.array(rows))
            rejections = _in_order(pa.concat_tables([rejections, _as_rejections(again)]))
            keep = np.ones(len(records), bool)
            keep[rows] = False
            records = records.filter(pa.array(keep))
            if bypass_duplicates:
                records = _in_order(pa.concat_tables([records, _as_bypass(again)]))
        yield records, rejections


def _in_order(table: pa.Table) -> pa.Table:
    """A chunk's rows in the dataset's order: dataset, task, number of the qid."""
    numbers = pc.cast(pc.utf8_slice_codeunits(table["qid"], 2), pa.int64())
    keyed = table.append_column("number", numbers)
    order = pc.sort_indices(keyed, [("dataset", "ascending"), ("task_id", "ascending"), ("number", "ascending")])
    return table.take(order)


def _as_rejections(records: pa.Table) -> pa.Table:
    count = len(records)
    columns = {name: records[name] for name in REJECTIONS.names if name in records.column_names}
    columns |= {
        "stage": pa.array([str(Stage.SCREEN)] * count),
        "reason": pa.array([str(ScreenReason.NEAR_DUPLICATE)] * count),
        "detail": pa.array(["an earlier record has the same query and answer"] * count),
        "raw_answer": pa.array([_raw(row) for row in records.select(["task_id", "facets", "answer"]).to_pylist()]),
        "attempts": pc.struct_field(records["provenance"], "attempts"),
    }
    return pa.table([columns[name] for name in REJECTIONS.names], schema=REJECTIONS)


def _raw(row: dict[str, Any]) -> str:
    """The trace as the teacher writes it: all of it is in the record."""
    family = family_of(row["task_id"])
    labels = {facet.name: facet.label for facet in family.facets}
    facets = tuple(FacetText(name=f["name"], label=labels[f["name"]], text=f["text"]) for f in row["facets"])
    return Trace(family=family.name, facets=facets, answer=row["answer"]).render()


def _as_bypass(records: pa.Table) -> pa.Table:
    count = len(records)
    empty = {
        "route": pa.array([str(Route.BYPASS)] * count),
        "facets": pa.array([[]] * count, RECORDS.field("facets").type),
        "reasoning": pa.nulls(count, pa.string()),
        "answer": pa.nulls(count, pa.string()),
        "target": pa.array([EMB_TOKEN] * count),
        "verdict": pa.nulls(count, RECORDS.field("verdict").type),
    }
    return pa.table([empty.get(name, records[name]) for name in RECORDS.names], schema=RECORDS)


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
    for key, found in ids.items():  # a query never spans two chunks
        counts[key]["queries"] += len(found)


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
