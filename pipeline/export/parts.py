"""Parquet files that are written row group by row group, and the card header by which `datasets` finds them.

Rows contain pictures, so the buffer is bounded in bytes as well as in rows.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

_ROWS: Final = 200
_BYTES: Final = 32 << 20


class Part:
    """One Parquet file with an explicit schema. It is created with the first row group."""

    def __init__(self, path: Path, schema: pa.Schema, *, rows: int = _ROWS) -> None:
        self.path, self._schema, self._most = path, schema, rows
        self.count = 0
        self._waiting: list[dict[str, Any]] = []
        self._bytes = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, row: dict[str, Any], size: int = 0) -> None:
        """size: bytes of the row's pictures."""
        self._waiting.append(row)
        self.count += 1
        self._bytes += size
        if len(self._waiting) >= self._most or self._bytes >= _BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes the buffered rows as a row group."""
        if self._waiting:
            if self._writer is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._writer = pq.ParquetWriter(self.path, self._schema)
            self._writer.write_table(pa.Table.from_pylist(self._waiting, schema=self._schema))
            self._waiting, self._bytes = [], 0

    def close(self) -> None:
        """Finishes the file. One without rows still has its schema."""
        self.flush()
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self.path, self._schema)
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        elif self._writer is not None:
            self._writer.close()


def header(configs: dict[str, list[str]], *, default: str, split: str = "train") -> str:
    """The YAML header by which `load_dataset(directory, name)` finds files. configs: names to paths below the directory."""
    entries = [
        {
            "config_name": name,
            **({"default": True} if name == default else {}),
            "data_files": [{"split": split, "path": paths if len(paths) > 1 else paths[0]}],
        }
        for name, paths in configs.items()
    ]
    return f"---\n{yaml.safe_dump({'configs': entries}, sort_keys=False)}---\n" if entries else ""
