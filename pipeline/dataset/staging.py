"""Holds finished chunks until all have arrived. Everything here derives from the ledger and need not survive."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset.arrow_schema import RECORDS, REJECTIONS


class Staging:
    """Chunks by number in one scratch file. Only what the assembly needs of all chunks at once is kept in memory."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("w+b")
        self._places: dict[int, tuple[int, int, int]] = {}
        self.keys: dict[int, NDArray[np.int64]] = {}
        self.owed: dict[int, int] = {}
        self.tokens: dict[int, dict[str, int]] = {}
        self.suspects: dict[int, int] = {}
        self.unread: dict[int, dict[str, tuple[str, str]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._file.close()
        except OSError:  # a full disk: the content is no longer needed
            pass
        finally:
            self.path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forgets all chunks."""
        self._file.truncate(0)
        for held in (self._places, self.keys, self.owed, self.tokens, self.suspects, self.unread):
            held.clear()

    def __len__(self) -> int:
        return len(self._places)

    def put(self, number: int, chunk: Chunk) -> None:
        """Stores a chunk, or replaces one."""
        records, rejections = _ipc(chunk.records), _ipc(chunk.rejections)
        start = self._file.seek(0, 2)
        self._file.write(records)
        self._file.write(rejections)
        self._places[number] = (start, len(records), len(rejections))
        # A copy: Ray's arrays are views of its shared memory and would keep the whole chunk there.
        self.keys[number] = np.array(chunk.keys)
        self.owed[number], self.tokens[number] = chunk.owed, chunk.tokens
        self.unread[number], self.suspects[number] = chunk.unread, chunk.suspects

    def get(self, number: int) -> tuple[pa.Table, pa.Table]:
        """(records, rejections) of a chunk."""
        start, first, second = self._places[number]
        self._file.seek(start)
        data = self._file.read(first + second)
        records = pa.ipc.open_stream(pa.py_buffer(data[:first])).read_all()
        rejections = pa.ipc.open_stream(pa.py_buffer(data[first:])).read_all()
        return records.cast(RECORDS), rejections.cast(REJECTIONS)


def _ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


@dataclass
class Chunk:
    """The rows of some queries in order.

    Args:
        keys: for each record its near-duplicate key, 0 for none.
        owed: queries whose request got no answer; a later run sends it again.
        suspects: the owed queries whose request was in flight when a server died.
        tokens: of all answers that the annotations used, old and new.
        unread: image that could not be used -> (reason, its state then; see `pipeline.dataset.unreadable_inputs`).
    """

    records: pa.Table
    rejections: pa.Table
    keys: NDArray[np.int64]
    owed: int = 0
    tokens: dict[str, int] = field(default_factory=dict)
    unread: dict[str, tuple[str, str]] = field(default_factory=dict)
    suspects: int = 0
