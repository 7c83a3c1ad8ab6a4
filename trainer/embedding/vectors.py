"""Vectors, from disk or memory, block by block: of unit length, in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS: Final = 32_768


Vectors = NDArray[np.float32]


def normalise(vectors: NDArray[np.floating]) -> Vectors:
    """Scales vectors to unit length, in float32; zero vectors stay zero (faiss.normalize_L2)."""
    return _normalise(vectors)[0]


def _normalise(vectors: NDArray[np.floating]) -> tuple[Vectors, Vectors]:
    """(unit vectors, lengths before)."""
    units_CD: Vectors = np.ascontiguousarray(vectors, np.float32)
    if units_CD is vectors:
        units_CD = units_CD.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        lengths_C = np.sqrt(np.einsum("ij,ij->i", units_CD, units_CD))
        np.divide(units_CD, lengths_C[:, None], out=units_CD, where=lengths_C[:, None] > 0)
    return units_CD, lengths_C


def read_blocks(
    pool: NDArray[np.floating], rows: int = BLOCK_ROWS, *, wrong: Callable[[NDArray[np.int64]], None] | None = None
) -> Iterator[Vectors]:
    """Normalised blocks of an array of shape (n, dim), which may be memory-mapped.

    wrong: called after the last block if some vectors have no finite length (NaN, inf, or beyond float32), with their indices.
    """
    not_finite: list[NDArray[np.int64]] = []
    for start in range(0, len(pool), rows):
        block_CD, lengths_C = _normalise(pool[start : start + rows])
        not_finite.append(np.flatnonzero(~np.isfinite(lengths_C)) + start)
        yield block_CD
    if wrong is not None and any(map(len, not_finite)):
        wrong(np.concatenate(not_finite))
