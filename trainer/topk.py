"""Exact top-k by inner product over pools larger than memory, with the order of ties of CPU faiss.

The pool is read in blocks; per query only k candidates are kept. Which of equal scores stay, and in which order, decides the
last digits on pools with duplicates, so it is faiss's rule (`IndexFlatIP`, k < 100, as measured): the pool is scanned in order;
an item enters only if its score is greater than the worst kept; evicted is the worst, among equals the earliest; the result is
sorted by score, among equals the latest first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

MISSING: Final = -1
LOWEST: Final = np.float32(np.finfo(np.float32).min)
BLOCK_ROWS: Final = 32_768
_QUERY_ROWS: Final = 1_024
_FIRST_ROWS: Final = 256

Vectors = NDArray[np.float32]


class TopK(NamedTuple):
    """Both of shape (queries, k), best first. Where the pool has fewer than k items: position -1 and the lowest score."""

    positions: NDArray[np.int64]
    scores: Vectors


def normalised(vectors: NDArray[np.floating]) -> Vectors:
    """Rows of unit length in float32; zero rows stay zero (faiss.normalize_L2)."""
    found: Vectors = np.ascontiguousarray(vectors, np.float32)
    if found is vectors:
        found = found.copy()
    lengths = np.sqrt(np.einsum("ij,ij->i", found, found))
    np.divide(found, lengths[:, None], out=found, where=lengths[:, None] > 0)
    return found


def blocks(pool: NDArray[np.floating], rows: int = BLOCK_ROWS) -> Iterator[Vectors]:
    """A (possibly memory-mapped) array of shape (n, dim) as normalised blocks."""
    for start in range(0, len(pool), rows):
        yield normalised(pool[start : start + rows])


def top_k(queries: Vectors, pool: Iterable[Vectors], k: int) -> TopK:
    """The k best of all blocks for each (normalised) query. Positions count over the blocks in their order."""
    positions = np.full((len(queries), k), MISSING, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    products, enters = _Room(np.float32), _Room(np.bool_)
    start = 0
    for block in pool:
        for first in range(0, len(queries), _QUERY_ROWS):
            part = slice(first, first + _QUERY_ROWS)
            found = np.matmul(queries[part], block.T, out=products.of(len(queries[part]), len(block)))
            for begin, end in _stretches(start, len(block)):
                _merge(positions[part], scores[part], found[:, begin:end], start + begin, enters)
        start += len(block)
    # kept in pool order until here; now best first, and of equals the latest
    order = np.lexsort((-positions, -scores), axis=1)
    positions, scores = np.take_along_axis(positions, order, 1), np.take_along_axis(scores, order, 1)
    scores[positions == MISSING] = LOWEST
    return TopK(positions, scores)


class _Room:
    """Memory that is used again and again: getting it anew for every block costs as much as the products in it."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._flat: NDArray[Any] = np.empty(0, dtype)

    def of(self, rows: int, columns: int) -> NDArray[Any]:
        if self._flat.size < rows * columns:
            self._flat = np.empty(rows * columns, self._flat.dtype)
        return self._flat[: rows * columns].reshape(rows, columns)


def _stretches(start: int, rows: int) -> Iterator[tuple[int, int]]:
    """A block in parts of at most the number of rows seen before: few of a part's scores then enter, and the first block, where
    everything would, needs no more memory than others. Scanning in parts is scanning in order."""
    begin = 0
    while begin < rows:
        end = min(rows, begin + max(start + begin, _FIRST_ROWS))
        yield begin, end
        begin = end


def _merge(positions: NDArray[np.int64], scores: Vectors, found: Vectors, start: int, enters: _Room) -> None:
    """Takes a part's scores into the kept ones, in place. NaN never enters."""
    worst = scores.min(axis=1)
    entering_at = np.flatnonzero(np.greater(found, worst[:, None], out=enters.of(*found.shape)))
    if not len(entering_at):
        return
    rows, columns = np.divmod(entering_at, found.shape[1])
    edges = np.flatnonzero(np.diff(rows)) + 1
    k = scores.shape[1]
    for row, entering in zip(rows[np.concatenate(([0], edges))], np.split(columns, edges), strict=True):
        values = np.concatenate((scores[row], found[row, entering]))
        places = np.concatenate((positions[row], entering + start))
        kept = _scanned(values, k)
        scores[row], positions[row] = values[kept], places[kept]


def _scanned(values: Vectors, k: int) -> NDArray[np.int64]:
    """Which items a scan in order leaves in a heap of k, in order.

    With t the k-th largest value: all above t stay. Of those equal to t only the ones among the first k items that are at
    least t ever entered; each later item above t drove out the earliest of them.
    """
    threshold = np.partition(values, len(values) - k)[len(values) - k]
    above = values > threshold
    room = k - int(above.sum())
    entered = np.flatnonzero(values >= threshold)[:k]
    ties = entered[values[entered] == threshold]
    stays = above.copy()
    stays[ties[len(ties) - room :]] = True
    found: NDArray[np.int64] = np.flatnonzero(stays)
    return found
