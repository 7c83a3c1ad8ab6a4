"""Sealed answers: Parquet files, on any filesystem that pyarrow opens."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from pipeline.files.durable import sync
from pipeline.ledger.entry import SCHEMA, Entry
from pipeline.ledger.journal import LedgerError
from schemas.os_errors import ABSENT, explained, number_of, refused_by_system

ROW_GROUP: Final = 512
"""Answers that a look-up reads at once."""

_NAME: Final = re.compile(r"^segment-[0-9A-Za-z_.-]+\.parquet$")


class SegmentStore:
    """The segments of one location, a directory or a URI."""

    def __init__(self, location: str | Path) -> None:
        text = self.location = str(location)
        self.is_local = "://" not in text or text.startswith("file://")
        if self.is_local:
            self.root = str(Path(text.removeprefix("file://")).absolute())
            self.filesystem: fs.FileSystem = fs.LocalFileSystem()
        else:
            try:
                self.filesystem, self.root = fs.FileSystem.from_uri(text)
            except (pa.ArrowInvalid, OSError) as error:
                raise LedgerError(
                    f"cannot open the ledger at {text}: {error}", "give a directory or a URI pyarrow opens"
                ) from error
        try:
            self.filesystem.create_dir(self.root, recursive=True)
        except OSError as error:
            cause, remedy = explained(error)
            raise LedgerError(f"cannot create the ledger's directory {self.root}: {cause}", remedy) from error

    def names(self) -> list[str]:
        """Names of the segments, sorted: they begin with the start time of their writer."""
        try:
            listing = self.filesystem.get_file_info(fs.FileSelector(self.root))
        except OSError as error:
            cause, remedy = explained(error)
            raise LedgerError(f"the ledger's directory {self.root} cannot be read: {cause}", remedy) from error
        return sorted(info.base_name for info in listing if _NAME.match(info.base_name) and info.type == fs.FileType.File)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def write(self, name: str, entries: list[Entry]) -> None:
        """Seals answers: writes a temporary file, syncs it, renames it. A segment is on disk completely or not at all."""
        rows = [entry | {"fingerprint": bytes.fromhex(entry["fingerprint"])} for entry in entries]
        self.write_table(name, pa.Table.from_pylist(rows, schema=SCHEMA))

    def write_table(self, name: str, table: pa.Table) -> None:
        temporary = self.path(f".{name}.{os.getpid()}.tmp")
        try:
            pq.write_table(
                table,
                temporary,
                filesystem=self.filesystem,
                compression="zstd",
                row_group_size=ROW_GROUP,
                write_statistics=False,
                write_page_checksum=True,
            )
            if self.is_local:
                sync(temporary)
            self.filesystem.move(temporary, self.path(name))
            if self.is_local:
                sync(self.root)
        except OSError as error:
            with suppress(OSError):  # the first error says why
                if self.filesystem.get_file_info(temporary).type == fs.FileType.File:
                    self.filesystem.delete_file(temporary)
            cause, remedy = explained(error)
            raise LedgerError(
                f"{cause}: the segment {self.path(name)} could not be written",
                f"{remedy} and run the same command again: the answers are in the writer's journal until they are sealed",
            ) from error

    def open(self, name: str) -> pq.ParquetFile:
        """Raises LedgerError for a file that is not a complete segment."""
        with self._read_errors(name, "is not a complete segment"):
            return pq.ParquetFile(self.path(name), filesystem=self.filesystem, page_checksum_verification=True)

    def read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Raises LedgerError if the segment cannot be read."""
        file = self.open(name)
        with self._read_errors(name):
            return file.read(columns=columns)

    def read_rows(self, name: str, file: pq.ParquetFile, group: int, columns: list[str]) -> list[dict[str, Any]]:
        """One row group of a segment that was opened. Raises LedgerError if it cannot be read."""
        with self._read_errors(name):
            rows: list[dict[str, Any]] = file.read_row_group(group, columns=columns, use_threads=False).to_pylist()
            return rows

    @contextmanager
    def _read_errors(self, name: str, damage: str = "is damaged") -> Iterator[None]:
        try:
            yield
        except MemoryError:  # also Arrow's: nothing is known of the segment
            raise
        except pa.ArrowNotImplementedError as error:
            raise LedgerError(
                f"{self.path(name)} cannot be read by this pyarrow ({error})", "install the locked environment: make setup"
            ) from error
        except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: also texts that are not UTF-8
            if (refused := refused_by_system(error)) is not None:  # the segment may be intact
                raise LedgerError(f"{self.path(name)} cannot be read: {refused.cause}", refused.remedy) from error
            if number_of(error) in ABSENT:
                raise LedgerError(
                    f"{self.path(name)} has gone since the ledger was opened",
                    "run the same command again; `ledger compact` must not run beside a build",
                ) from error
            raise LedgerError(
                f"{self.path(name)} {damage} ({error})", "run `mbeir-cot ledger verify`, which says what to do"
            ) from error

    def delete(self, name: str) -> None:
        try:
            self.filesystem.delete_file(self.path(name))
        except OSError as error:
            cause, remedy = explained(error)
            raise LedgerError(f"{self.path(name)} cannot be removed: {cause}", remedy) from error


def look_up_keys(table: pa.Table) -> NDArray[np.uint64]:
    """The first 8 bytes of each row's fingerprint as a number."""
    fingerprints = b"".join(table["fingerprint"].to_pylist())
    return np.frombuffer(fingerprints, ">u8").reshape(-1, 2)[:, 0].astype(np.uint64)
