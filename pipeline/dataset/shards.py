"""Parquet files with a fixed number of rows; the same rows give the same bytes, however they arrive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.dataset.arrow_schema import RECORDS, with_features
from pipeline.files.durable import sha256_file
from pipeline.mbeir.image_store import ImageStore, picture_value
from schemas.manifest import DataFile
from schemas.mbeir import Split


class ShardWriter:
    """Writes files of `rows_per_shard` rows; their names contain the number of files."""

    def __init__(
        self,
        directory: Path,
        split: Split,
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
        """Rows of the next group; None if more rows may still join it."""
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


def image_schema() -> pa.Schema:
    """The schema of records with the bytes of their query image."""
    image = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    return RECORDS.set(RECORDS.get_field_index("query_image"), pa.field("query_image", image))


def _has_bytes(schema: pa.Schema) -> bool:
    return bool(pa.types.is_struct(schema.field("query_image").type))


def _image_sizes(table: pa.Table) -> NDArray[np.int64]:
    """Bytes of each row's image, (rows,)."""
    lengths = pc.binary_length(pc.struct_field(table["query_image"], "bytes"))
    sizes: NDArray[np.int64] = pc.fill_null(lengths, 0).to_numpy().astype(np.int64)
    return sizes


def with_images(records: pa.Table, images: ImageStore) -> pa.Table:
    """Records in `image_schema`."""
    rows = [picture_value(images, path) if path else None for path in records["query_image"].to_pylist()]
    schema = image_schema()
    at = schema.get_field_index("query_image")
    return records.set_column(at, schema.field(at), pa.array(rows, schema.field(at).type))
