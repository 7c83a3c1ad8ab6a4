"""Exact top-k by inner product over pools larger than memory, with the order of ties of CPU faiss.

The pool is read in blocks; per query only k candidates are kept. Which of equal scores stay, and in which order, decides the
last digits on pools with duplicates, so it is faiss's rule (`IndexFlatIP`, k < 100, as measured): the pool is scanned in order;
an item enters only if its score is greater than the worst kept; evicted is the worst, among equals the earliest; the result is
sorted by score, among equals the latest first.

Several sets of queries are searched in one pass: each block is read, normalised and multiplied once for all of them. On the
CPU here, with numpy; on a GPU in `topk_device`, by the same rule. Memory: one block (two on a GPU), its products with 1,024
queries, the queries, and 12 bytes for each that is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.embedding.vectors import Vectors

MISSING: Final = -1
LOWEST: Final = np.float32(np.finfo(np.float32).min)
_QUERY_ROWS: Final = 1_024
_FIRST_ROWS: Final = 256
_WAITING: Final = 4
"""Scores that may wait for a merge, for each that is kept."""


class TopK(NamedTuple):
    """Both of shape (queries, k), best first. Where the pool has fewer than k items: position -1 and the lowest score."""

    positions: NDArray[np.int64]
    scores: Vectors


def top_k(queries: Vectors, pool: Iterable[Vectors], k: int, *, device: str = "cpu") -> TopK:
    """The k best of all blocks for each (normalised) query. Positions count over the blocks in their order."""
    return top_k_each([(queries, k)], pool, device=device)[0]


def top_k_each(asked: Sequence[tuple[Vectors, int]], pool: Iterable[Vectors], *, device: str = "cpu") -> list[TopK]:
    """For several sets of queries, each with its k, what `top_k` finds; the pool is gone through once."""
    parts = [(queries[first : first + _QUERY_ROWS], k) for queries, k in asked for first in range(0, len(queries), _QUERY_ROWS)]
    found = iter(_on_cpu(parts, pool) if device == "cpu" else _on_device(parts, pool, device))
    return [_joined([next(found) for _ in range(0, len(queries), _QUERY_ROWS)], k) for queries, k in asked]


def search_device(wanted: str = "auto") -> str:
    """`auto`: a GPU where there is one."""
    if wanted == "cpu":
        return wanted
    import torch  # noqa: PLC0415 (it takes seconds, and the CPU needs none of it)

    return "cuda" if wanted == "cuda" or torch.cuda.is_available() else "cpu"


def _on_cpu(parts: Sequence[tuple[Vectors, int]], pool: Iterable[Vectors]) -> list[TopK]:
    kept = [RunningTopK(len(part), k) for part, k in parts]
    products, enters = ScratchBuffer(np.float32), ScratchBuffer(np.bool_)
    for block in pool:
        for (part, _), best in zip(parts, kept, strict=True):
            best.scan(np.matmul(part, block.T, out=products.of(len(part), len(block))), enters)
    return [best.result() for best in kept]


def _on_device(parts: Sequence[tuple[Vectors, int]], pool: Iterable[Vectors], device: str) -> list[TopK]:
    import torch  # noqa: PLC0415

    from trainer.retrieval.topk_device import scan_pool  # noqa: PLC0415

    return [_sorted(*kept) for kept in scan_pool(parts, pool, torch.device(device))]


def _joined(found: Sequence[TopK], k: int) -> TopK:
    found = found or [RunningTopK(0, k).result()]
    return TopK(np.concatenate([one.positions for one in found]), np.concatenate([one.scores for one in found]))


def _sorted(positions: NDArray[np.int64], scores: Vectors) -> TopK:
    """Best first, and of equals the latest."""
    order = np.lexsort((-positions, -scores), axis=1)
    positions, scores = np.take_along_axis(positions, order, 1), np.take_along_axis(scores, order, 1)
    scores[positions == MISSING] = LOWEST
    return TopK(positions, scores)


class ScratchBuffer:
    """Memory that is used again and again: getting it anew for every block costs as much as the products in it."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._flat: NDArray[Any] = np.empty(0, dtype)

    def of(self, rows: int, columns: int) -> NDArray[Any]:
        if self._flat.size < rows * columns:
            self._flat = np.empty(rows * columns, self._flat.dtype)
        return self._flat[: rows * columns].reshape(rows, columns)


class RunningTopK:
    """The k best of some queries so far, in pool order.

    What may enter is collected, against the worst kept at the last merge, and merged when the rows seen have doubled: few enter
    between two merges, and one merge costs the same for few as for many. Scanning late is scanning in order.
    """

    def __init__(self, queries: int, k: int) -> None:
        self.positions = np.full((queries, k), MISSING, np.int64)
        self.scores = np.full((queries, k), -np.inf, np.float32)
        self._worst = np.full(queries, -np.inf, np.float32)
        self._entering: list[tuple[NDArray[np.int64], NDArray[np.int64], Vectors]] = []
        self._waiting = self._seen = self._merged = 0

    def scan(self, products: Vectors, enters: ScratchBuffer) -> None:
        """The next rows of the pool: products (queries, rows). NaN never enters."""
        begin, rows = 0, products.shape[1]
        while begin < rows:
            end = min(rows, begin + max(2 * self._merged - self._seen, _FIRST_ROWS))
            part = products[:, begin:end]
            at = np.flatnonzero(np.greater(part, self._worst[:, None], out=enters.of(*part.shape)))
            row, column = np.divmod(at, end - begin)
            self._entering.append((row, column + self._seen, part[row, column]))
            self._waiting += len(at)
            self._seen += end - begin
            begin = end
            # the second bound: of a pool sorted by score, everything enters
            if self._seen >= 2 * self._merged or self._waiting > _WAITING * self.scores.size:
                self._merge()

    def _merge(self) -> None:
        rows, places, values = (np.concatenate(parts) for parts in zip(*self._entering, strict=True))
        order = np.argsort(rows, kind="stable")  # of a row, in pool order
        rows, places, values = rows[order], places[order], values[order]
        edges = np.flatnonzero(np.diff(rows, prepend=-1))
        for begin, end in pairwise([*edges.tolist(), len(rows)]):
            row = rows[begin]
            every = np.concatenate((self.scores[row], values[begin:end]))
            kept = _scanned(every, self.scores.shape[1])
            self.scores[row] = every[kept]
            self.positions[row] = np.concatenate((self.positions[row], places[begin:end]))[kept]
        self._worst = self.scores.min(axis=1)
        self._entering, self._waiting, self._merged = [], 0, self._seen

    def result(self) -> TopK:
        if self._entering:
            self._merge()
        return _sorted(self.positions, self.scores)


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
