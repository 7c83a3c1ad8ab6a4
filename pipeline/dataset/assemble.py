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
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.dataset.arrow_schema import RECORDS, REJECTIONS, with_features
from pipeline.dataset.staging import Staging
from pipeline.files.durable import sha256_file
from pipeline.mbeir.images import ImageStore, picture_value
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
"""The Hub's viewer refuses row groups above some 286 MiB."""

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
        data = _Shards(directory / "data", split, RECORDS, total=total, rows_per_shard=rows_per_shard, row_group=ROW_GROUP)
        refused = [len(staging.get(number)[1]) + len(repeated.get(number, ())) for number in range(len(staging))]
        rejected = _Shards(
            directory / "rejected", split, REJECTIONS, total=sum(refused), rows_per_shard=rows_per_shard, row_group=ROW_GROUP
        )
        pictured = None
        if images is not None:
            pictured = _Shards(
                directory / "with_images",
                split,
                _image_schema(),
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
                    pictured.write(_with_bytes(records.slice(start, _IMAGE_ROWS_READ), images))
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


class _Shards:
    """Rows into files of `rows_per_shard` rows, whose names tell how many there are."""

    def __init__(
        self,
        directory: Path,
        split: str,
        schema: pa.Schema,
        *,
        total: int,
        rows_per_shard: int,
        row_group: int,
        group_bytes: int | None = None,
    ) -> None:
        self._directory, self._split, self._row_group, self._group_bytes = directory, split, row_group, group_bytes
        self._plain = schema
        self._schema = with_features(schema, image_column="query_image" if _has_bytes(schema) else None)
        self._per_shard = rows_per_shard
        self._count = max(1, -(-total // rows_per_shard))
        self._writer: pq.ParquetWriter | None = None
        self._rows = self._number = 0
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._written: list[tuple[Path, int]] = []
        directory.mkdir(parents=True)

    def write(self, table: pa.Table) -> None:
        """Row groups are filled before they are written, so that they do not depend on how rows arrive."""
        self._waiting.append(table)
        self._waiting_rows += len(table)
        if self._waiting_rows >= self._row_group or self._group_bytes is not None:
            self._flush(final=False)

    def close(self) -> list[DataFile]:
        self._flush(final=True)
        if self._writer is None and not self._written:
            self._open()
        self._finish()
        return [
            DataFile(path=f"{self._directory.name}/{path.name}", sha256=sha256_file(path), rows=rows, bytes=path.stat().st_size)
            for path, rows in self._written
        ]

    def _flush(self, *, final: bool) -> None:
        table = pa.concat_tables(self._waiting).combine_chunks() if self._waiting else self._plain.empty_table()
        sizes = _image_sizes(table) if self._group_bytes is not None else None
        start = 0
        while start < len(table):
            count = self._next_group(sizes, start, len(table))
            if count is None and not final:
                break
            room = self._per_shard - self._rows
            taken = table.slice(start, min(count or len(table) - start, room))
            if self._writer is None:
                self._open()
            assert self._writer is not None
            self._writer.write_table(taken.cast(self._schema), row_group_size=self._row_group)
            self._rows += len(taken)
            start += len(taken)
            if self._rows == self._per_shard:
                self._finish()
        rest = table.slice(start)
        self._waiting, self._waiting_rows = [rest], len(rest)

    def _next_group(self, sizes: NDArray[np.int64] | None, start: int, end: int) -> int | None:
        """Rows of the next group; None where more rows may still join it."""
        if sizes is not None and self._group_bytes is not None:
            filled = int(np.searchsorted(np.cumsum(sizes[start : start + self._row_group]), self._group_bytes, side="right"))
            if filled < min(self._row_group, end - start):
                return max(1, filled)
        return self._row_group if end - start >= self._row_group else None

    def _open(self) -> None:
        path = self._directory / f"{self._split}-{self._number:05d}-of-{self._count:05d}.parquet"
        self._writer = pq.ParquetWriter(
            path, self._schema, compression="zstd", write_page_index=True, use_content_defined_chunking=True
        )
        self._written.append((path, 0))

    def _finish(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        self._written[-1] = (self._written[-1][0], self._rows)
        self._rows = 0
        self._number += 1


def _image_schema() -> pa.Schema:
    image = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    return RECORDS.set(RECORDS.get_field_index("query_image"), pa.field("query_image", image))


def _has_bytes(schema: pa.Schema) -> bool:
    return bool(pa.types.is_struct(schema.field("query_image").type))


def _image_sizes(table: pa.Table) -> NDArray[np.int64]:
    """Bytes of each row's image, (rows,)."""
    lengths = pc.binary_length(pc.struct_field(table["query_image"], "bytes"))
    found: NDArray[np.int64] = pc.fill_null(lengths, 0).to_numpy().astype(np.int64)
    return found


def _with_bytes(records: pa.Table, images: ImageStore) -> pa.Table:
    rows = [picture_value(images, path) if path else None for path in records["query_image"].to_pylist()]
    schema = _image_schema()
    at = schema.get_field_index("query_image")
    return records.set_column(at, schema.field(at), pa.array(rows, schema.field(at).type))


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
