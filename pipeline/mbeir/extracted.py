"""The record of an extraction: its marker, and the list of its files with their sizes, to find lost images."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.progress_meter import Meter
from schemas.errors import InputError
from schemas.os_errors import explained

MARKER: Final = ".mbeir_images.extracted.json"
LISTING: Final = ".mbeir_images.files.parquet"
_SCHEMA: Final = pa.schema([pa.field("path", pa.string()), pa.field("size", pa.int64())])
_ROWS: Final = 100_000
"""Entries of the list in memory at once: M-BEIR has millions of images."""


class ExtractSummary(BaseModel):
    """The marker's content: the parts, the extracted folders (None: all), and their files and bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parts: tuple[tuple[str, int], ...]
    folders: tuple[str, ...] | None
    files: int
    size: int
    written: int


def read_marker(dest: Path) -> ExtractSummary | None:
    try:
        return ExtractSummary.model_validate_json((dest / MARKER).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None
    except OSError as error:  # unreadable, which is no reason to extract everything again
        raise _unreadable(dest / MARKER, error) from error


def _unreadable(path: Path, error: OSError) -> InputError:
    cause, remedy = explained(error)
    return InputError(f"{path} cannot be read: {cause}", remedy)


def covers(done: ExtractSummary | None, folders: frozenset[str] | None) -> bool:
    """Whether an earlier extraction covers these folders (None: all)."""
    return done is not None and (done.folders is None or (folders is not None and folders <= set(done.folders)))


def write_marker(dest: Path, summary: ExtractSummary) -> None:
    temporary = dest / f"{MARKER}.tmp"
    temporary.write_text(summary.model_dump_json() + "\n", encoding="utf-8")
    temporary.replace(dest / MARKER)


class Listing:
    """Writes the list of extracted files; it replaces the old one if the context ends without an error."""

    def __init__(self, dest: Path) -> None:
        self._place, self._new = dest / LISTING, dest / f"{LISTING}.tmp"
        self._rows: list[tuple[str, int]] = []

    def __enter__(self) -> Self:
        self._writer = pq.ParquetWriter(self._new, _SCHEMA, compression="zstd")
        return self

    def add(self, path: str, size: int) -> None:
        self._rows.append((path, size))
        if len(self._rows) == _ROWS:
            self._flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._flush()
        self._writer.close()
        if kind is None:
            self._new.replace(self._place)
        else:
            self._new.unlink(missing_ok=True)

    def _flush(self) -> None:
        paths, sizes = [path for path, _ in self._rows], [size for _, size in self._rows]
        self._writer.write_table(pa.table([paths, sizes], schema=_SCHEMA))
        self._rows.clear()


def lost_images(dest: Path, done: ExtractSummary) -> int:
    """How many of the extracted images are now missing or have another size.

    Extractions by earlier versions left no list. For these, files and bytes are compared with the marker's totals.
    """
    try:
        file = pq.ParquetFile(dest / LISTING)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise _unreadable(dest / LISTING, error) from error
        return _lost_of_unlisted(dest, done)
    except pa.ArrowInvalid:
        return _lost_of_unlisted(dest, done)
    lost = 0
    with Meter("looking at images", done.files, unit="images") as meter, file:
        for batch in file.iter_batches(_ROWS):
            for path, size in zip(batch["path"].to_pylist(), batch["size"].to_pylist(), strict=True):
                try:
                    lost += os.stat(dest / path).st_size != size  # noqa: PTH116 (this runs millions of times)
                except (FileNotFoundError, NotADirectoryError):
                    lost += 1
                except OSError as error:  # a failing disk has not lost the image yet
                    raise _unreadable(dest / path, error) from error
            meter.advance(len(batch))
    return lost


def _lost_of_unlisted(dest: Path, done: ExtractSummary) -> int:
    files = size = 0
    for folder, _, names in os.walk(dest / "mbeir_images"):
        for name in names:
            try:
                size += os.stat(os.path.join(folder, name)).st_size  # noqa: PTH116, PTH118
            except OSError:
                continue
            files += 1
    return max(done.files - files, int(size < done.size))
