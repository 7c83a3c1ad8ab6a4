"""Candidate pools, looked up on disk: of 5.6 M candidates a reader loads only the pages that it touches."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.mbeir.cache import default_cache_dir
from pipeline.mbeir.convert import BATCH_ROWS, converted, read_meta
from pipeline.mbeir.jsonl import LinePolicy
from schemas.errors import InputError
from schemas.mbeir import Candidate, hash_did

_RELEASE_BYTES: Final = 64 << 20
"""A fetch releases mapped pages after reading this much: the kernel maps 64 KiB around each touched page, so random look-ups
would otherwise map the whole file. The page cache keeps the pages."""

_FETCH_ROWS: Final = 16_384
"""Rows that a fetch holds in memory at once, as Arrow and as dicts."""


class CandidatePool:
    """One candidate pool file, memory-mapped, in file order, searchable by did.

    Picklable: a copy in another process opens the same files. Use it as a context manager or call `close`.
    """

    def __init__(self, path: Path, cache_dir: Path, policy: LinePolicy) -> None:
        self.path = path
        self._arguments = (path, cache_dir, policy)
        entry = converted(path, cache_dir, policy)
        meta = read_meta(entry)
        if meta is None:
            raise InputError(f"the converted form of {path} vanished from {entry}", "run again")
        self.sha256 = meta.sha256
        self.rejected_lines = meta.rejected_lines
        self.rejects_path = entry / "rejects.jsonl" if meta.rejected_lines else None
        mode: Literal["r"] | None = "r" if meta.rows else None  # numpy cannot map an empty array
        self.hashed_dids: NDArray[np.int64] = np.load(entry / "hashes.npy", mmap_mode=mode)
        self._order: NDArray[np.int32] = np.load(entry / "order.npy", mmap_mode=mode)
        with (entry / "data.arrow").open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._map)))

    @classmethod
    def open(cls, path: Path, cache_dir: Path | None = None, *, policy: LinePolicy = LinePolicy.STRICT) -> CandidatePool:
        """Opens the pool, converting the file on first use.

        Under ``skip`` malformed lines are recorded in `rejects_path`. Raises InputError, naming lines, otherwise.
        """
        return cls(path, cache_dir or default_cache_dir(), policy)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def __len__(self) -> int:
        return len(self.hashed_dids)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Releases the mapping. Tables taken from the pool are copies and stay valid."""
        self._reader = None
        with suppress(BufferError):  # the caller still holds a record batch of `batches`; the mapping ends with it
            self._map.close()

    def find(self, hashes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions in pool order of hashed dids, -1 where the pool has none. Shape (n,) -> (n,)."""
        if not len(self):
            return np.full(len(hashes), -1, np.int64)
        at = np.searchsorted(self.hashed_dids, hashes, sorter=self._order)
        positions: NDArray[np.int64] = self._order[np.minimum(at, len(self) - 1)].astype(np.int64)
        positions[self.hashed_dids[positions] != hashes] = -1
        return positions

    def __contains__(self, did: object) -> bool:
        return isinstance(did, str) and bool(self.find(np.array([hash_did(did)]))[0] >= 0)

    def fetch(self, dids: Sequence[str]) -> list[Candidate]:
        """The candidates with these dids, in the order asked, repeats included. Raises InputError for unknown ones."""
        positions = self.find(np.array([hash_did(did) for did in dids], np.int64))
        missing = np.flatnonzero(positions < 0)
        if len(missing):
            named = ", ".join(dids[i] for i in missing[:20])
            raise InputError(
                f"{len(missing)} of {len(dids)} dids are not in the pool {self.path}: {named}"
                + (", …" if len(missing) > 20 else ""),
                "local pools lack cross-dataset positives; look these up in the global pool of the split",
            )
        validate = Candidate.model_validate  # faster than model_construct, which runs in Python
        return [
            validate(row)
            for start in range(0, len(positions), _FETCH_ROWS)
            for row in self.fetch_table(positions[start : start + _FETCH_ROWS]).to_pylist()
        ]

    def fetch_table(self, positions: NDArray[np.int64]) -> pa.Table:
        """Rows at pool positions, in the order asked. Shape (n,) -> n rows, copied out of the mapping."""
        by_position = np.argsort(positions, kind="stable")
        wanted = positions[by_position]
        edges = np.arange(self._reader.num_record_batches + 1) * BATCH_ROWS
        cuts = np.searchsorted(wanted, edges)
        parts, touched = [], 0
        for number in np.flatnonzero(np.diff(cuts)):
            batch = self._reader.get_batch(int(number))
            parts.append(batch.take(pa.array(wanted[cuts[number] : cuts[number + 1]] - edges[number])))
            touched += batch.nbytes
            del batch
            if touched > _RELEASE_BYTES:
                self._release()
                touched = 0
        self._release()
        table = pa.Table.from_batches(parts, schema=self._reader.schema)
        back = np.empty_like(by_position)
        back[by_position] = np.arange(len(positions))
        return table.combine_chunks().take(pa.array(back))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The whole pool in pool order, without copies. Do not hold many: they keep pages mapped."""
        for number in range(self._reader.num_record_batches):
            yield self._reader.get_batch(number)
            if number % 8 == 7:
                self._release()

    def _release(self) -> None:
        self._map.madvise(mmap.MADV_DONTNEED)
