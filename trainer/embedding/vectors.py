"""Vectors on disk and in memory: read block by block, of unit length, in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS: Final = 32_768


Vectors = NDArray[np.float32]


def normalised(vectors: NDArray[np.floating]) -> Vectors:
    """Rows of unit length in float32; zero rows stay zero (faiss.normalize_L2)."""
    return _normalised(vectors)[0]


def _normalised(vectors: NDArray[np.floating]) -> tuple[Vectors, Vectors]:
    found: Vectors = np.ascontiguousarray(vectors, np.float32)
    if found is vectors:
        found = found.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", found, found))
        np.divide(found, lengths[:, None], out=found, where=lengths[:, None] > 0)
    return found, lengths


def blocks(
    pool: NDArray[np.floating], rows: int = BLOCK_ROWS, *, wrong: Callable[[NDArray[np.int64]], None] | None = None
) -> Iterator[Vectors]:
    """A (possibly memory-mapped) array of shape (n, dim) as normalised blocks.

    wrong: called after the last block where rows have no finite length (NaN, inf, or beyond float32), with their indices.
    """
    without: list[NDArray[np.int64]] = []
    for start in range(0, len(pool), rows):
        block, lengths = _normalised(pool[start : start + rows])
        without.append(np.flatnonzero(~np.isfinite(lengths)) + start)
        yield block
    if wrong is not None and any(map(len, without)):
        wrong(np.concatenate(without))
