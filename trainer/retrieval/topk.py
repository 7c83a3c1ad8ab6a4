"""Exact top-k by inner product over pools larger than memory, with the order of ties of CPU faiss.

The pool is read in blocks; only k candidates per query are kept. On pools with duplicates, the choice and order of equal scores
decide the last digits, so they follow faiss (`IndexFlatIP`, k < 100, as measured): the pool is scanned in order; an item enters
only if its score is greater than the worst kept; the worst is evicted, the earliest among equals; the result is sorted by
score, the latest first among equals.

Several sets of queries are searched in one pass: each block is read and normalised once for all of them. This module scans with
numpy on the CPU; `topk_device` scans on a GPU by the same rule. Memory: one block (two on a GPU), its products with 1,024
queries, the queries, and 12 bytes per hit kept.
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
"""Scores that may wait for a merge, per hit kept."""


class TopK(NamedTuple):
    """Both of shape (queries, k), best first. Unfilled places, if the pool is smaller than k: position -1, the lowest score."""

    positions: NDArray[np.int64]
    scores: Vectors


def top_k(queries: Vectors, pool: Iterable[Vectors], k: int, *, device: str = "cpu") -> TopK:
    """The k best candidates of the pool for each (normalised) query. Positions count through the blocks in order."""
    return top_k_each([(queries, k)], pool, device=device)[0]


def top_k_each(searches: Sequence[tuple[Vectors, int]], pool: Iterable[Vectors], *, device: str = "cpu") -> list[TopK]:
    """`top_k` for several sets of queries, each with its k, in one pass over the pool."""
    parts = [
        (queries_QD[first : first + _QUERY_ROWS], k)
        for queries_QD, k in searches
        for first in range(0, len(queries_QD), _QUERY_ROWS)
    ]
    results = iter(_scan_on_cpu(parts, pool) if device == "cpu" else _scan_on_device(parts, pool, device))
    return [_concatenate([next(results) for _ in range(0, len(queries_QD), _QUERY_ROWS)], k) for queries_QD, k in searches]


def search_device(setting: str = "auto") -> str:
    """cpu or cuda. `auto`: a GPU if there is one."""
    if setting == "cpu":
        return setting
    import torch  # noqa: PLC0415 (it takes seconds to import, and a search on the CPU does not need it)

    return "cuda" if setting == "cuda" or torch.cuda.is_available() else "cpu"


def _scan_on_cpu(parts: Sequence[tuple[Vectors, int]], pool: Iterable[Vectors]) -> list[TopK]:
    running = [RunningTopK(len(queries_QD), k) for queries_QD, k in parts]
    products, entering = ScratchBuffer(np.float32), ScratchBuffer(np.bool_)
    for block_CD in pool:
        for (queries_QD, _), best in zip(parts, running, strict=True):
            products_QC = products.view(len(queries_QD), len(block_CD))
            best.scan(np.matmul(queries_QD, block_CD.T, out=products_QC), entering)
    return [best.result() for best in running]


def _scan_on_device(parts: Sequence[tuple[Vectors, int]], pool: Iterable[Vectors], device: str) -> list[TopK]:
    import torch  # noqa: PLC0415

    from trainer.retrieval.topk_device import scan_pool  # noqa: PLC0415

    return [sort_hits(positions, scores) for positions, scores in scan_pool(parts, pool, torch.device(device))]


def _concatenate(results: Sequence[TopK], k: int) -> TopK:
    results = results or [RunningTopK(0, k).result()]
    return TopK(np.concatenate([part.positions for part in results]), np.concatenate([part.scores for part in results]))


def sort_hits(positions_QK: NDArray[np.int64], scores_QK: Vectors) -> TopK:
    """Best first; the latest first among equals."""
    order_QK = np.lexsort((-positions_QK, -scores_QK), axis=1)
    positions_QK = np.take_along_axis(positions_QK, order_QK, 1)
    scores_QK = np.take_along_axis(scores_QK, order_QK, 1)
    scores_QK[positions_QK == MISSING] = LOWEST
    return TopK(positions_QK, scores_QK)


class ScratchBuffer:
    """Reused memory: allocating it for every block costs as much as computing the products in it."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._flat: NDArray[Any] = np.empty(0, dtype)

    def view(self, rows: int, columns: int) -> NDArray[Any]:
        if self._flat.size < rows * columns:
            self._flat = np.empty(rows * columns, self._flat.dtype)
        return self._flat[: rows * columns].reshape(rows, columns)


class RunningTopK:
    """The k best candidates of some queries so far, in pool order.

    Scores above the worst kept at the last merge are collected, and merged when the number of scanned candidates has doubled:
    few are collected between two merges, and a merge costs about the same for few as for many. The result is that of a scan
    one by one.
    """

    def __init__(self, queries: int, k: int) -> None:
        self.positions = np.full((queries, k), MISSING, np.int64)
        self.scores = np.full((queries, k), -np.inf, np.float32)
        self._worst = np.full(queries, -np.inf, np.float32)
        self._entering: list[tuple[NDArray[np.int64], NDArray[np.int64], Vectors]] = []
        self._waiting = self._seen = self._merged = 0

    def scan(self, products_QC: Vectors, entering: ScratchBuffer) -> None:
        """Scans the next candidates of the pool. NaN never enters."""
        begin, count = 0, products_QC.shape[1]
        while begin < count:
            end = min(count, begin + max(2 * self._merged - self._seen, _FIRST_ROWS))
            part_QC = products_QC[:, begin:end]
            above = np.flatnonzero(np.greater(part_QC, self._worst[:, None], out=entering.view(*part_QC.shape)))
            query, column = np.divmod(above, end - begin)
            self._entering.append((query, column + self._seen, part_QC[query, column]))
            self._waiting += len(above)
            self._seen += end - begin
            begin = end
            # the second bound matters for a pool sorted by score, where everything enters
            if self._seen >= 2 * self._merged or self._waiting > _WAITING * self.scores.size:
                self._merge()

    def _merge(self) -> None:
        queries, positions, scores = (np.concatenate(parts) for parts in zip(*self._entering, strict=True))
        order = np.argsort(queries, kind="stable")  # by query, each in pool order
        queries, positions, scores = queries[order], positions[order], scores[order]
        edges = np.flatnonzero(np.diff(queries, prepend=-1))
        for begin, end in pairwise([*edges.tolist(), len(queries)]):
            query = queries[begin]
            merged = np.concatenate((self.scores[query], scores[begin:end]))
            kept_K = _scan(merged, self.scores.shape[1])
            self.scores[query] = merged[kept_K]
            self.positions[query] = np.concatenate((self.positions[query], positions[begin:end]))[kept_K]
        self._worst = self.scores.min(axis=1)
        self._entering, self._waiting, self._merged = [], 0, self._seen

    def result(self) -> TopK:
        if self._entering:
            self._merge()
        return sort_hits(self.positions, self.scores)


def _scan(scores: Vectors, k: int) -> NDArray[np.int64]:
    """The indices that a scan in order leaves in a heap of size k, in order.

    Let t be the k-th largest score. All above t stay. Of those equal to t, only the ones among the first k scores that are at
    least t ever entered, and each later score above t evicted the earliest of them.
    """
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    stays = scores > threshold
    room = k - int(stays.sum())
    entered = np.flatnonzero(scores >= threshold)[:k]
    ties = entered[scores[entered] == threshold]
    stays[ties[len(ties) - room :]] = True
    kept_K: NDArray[np.int64] = np.flatnonzero(stays)
    return kept_K
