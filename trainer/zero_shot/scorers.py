"""The suite's metrics: pure functions of vectors or of ranked ids, with a value for each query so that parts can be told apart.

The score of a query and a candidate is their inner product; vectors are to have length 1. What equal scores do:

* ranking a whole pool: the reference takes `torch.topk`, which leaves the order of equals open. Here it is that of the
  project's search (`trainer.retrieval.topk`): among equals the later candidate first;
* a gallery (GeneCIS): the target stands first and the reference's sort on a CPU is stable, so that it wins a tie.
  `gallery_hits` also gives the share of queries for which that decided, because an embedder that has collapsed would seem
  perfect by it;
* a pair (SugarCrepe, CC-Neg): the right caption has to score more; a tie is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.errors import InputError
from trainer.embedding.vectors import Vectors
from trainer.retrieval.topk import MISSING, top_k

Values = dict[str, NDArray[np.float64]]
"""Metric -> a value for each query, (queries,), between 0 and 1."""

_BLOCK_ROWS: Final = 16_384


def ranked(
    queries: Vectors, candidates: Vectors, depth: int, *, excluded: Sequence[Sequence[int]] | None = None, device: str = "cpu"
) -> NDArray[np.int64]:
    """Positions of the best candidates of each query, (queries, depth), best first; -1 where there are no more.

    excluded: for each query positions that are passed over. The reference scores them -100, so in a pool of fewer than `depth`
    others they follow at its end; here they are never found.
    """
    spare = max(map(len, excluded), default=0) if excluded is not None else 0
    blocks = (candidates[first : first + _BLOCK_ROWS] for first in range(0, len(candidates), _BLOCK_ROWS))
    positions = top_k(queries, blocks, depth + spare, device=device).positions
    if not spare or excluded is None:
        return positions
    kept = np.full((len(queries), depth), MISSING, np.int64)
    for row, found, passed in zip(kept, positions, excluded, strict=True):
        left = found[~np.isin(found, passed)][:depth]
        row[: len(left)] = left
    return kept


def hits(found: Sequence[Sequence[str]], positives: Sequence[Sequence[str]], ks: Sequence[int]) -> Values:
    """R@k as the suite has it: 1 where any right id is among the first k. An id that stands twice takes two places."""
    first = np.full(len(found), np.inf)
    for row, (ids, right) in enumerate(zip(found, positives, strict=True)):
        place = next((at for at, identifier in enumerate(ids) if identifier in right), None)
        if place is not None:
            first[row] = place
    return {f"R@{k}": (first < k).astype(np.float64) for k in ks}


def average_precision(found: Sequence[Sequence[str]], positives: Sequence[Sequence[str]], ks: Sequence[int]) -> Values:
    """CIRCO's: AP@k over all right ids, and R@k of the target alone, which is the first of them.

    AP@k = sum over ranks r <= k of precision(r) * right(r), divided by min(number of right ids, k): a query with more right ids
    than places can reach 1.
    """
    precision: dict[int, list[float]] = {k: [] for k in ks}
    for ids, right in zip(found, positives, strict=True):
        if len(set(ids)) < len(ids):
            raise InputError("an id is ranked twice for one query", "rank each candidate once: AP is not defined otherwise")
        if not right:
            raise InputError("a query has no right answer", "score a split whose labels are published: CIRCO's val")
        correct = np.isin(np.asarray(ids, dtype=object), np.asarray(right, dtype=object))
        gained = np.cumsum(correct) * correct / np.arange(1, len(correct) + 1)
        for k in ks:
            precision[k].append(float(gained[:k].sum()) / min(len(right), k))
    return {
        **{f"mAP@{k}": np.asarray(values, np.float64) for k, values in precision.items()},
        **hits(found, [right[:1] for right in positives], ks),
    }


def gallery_hits(queries: Vectors, candidates: Vectors, galleries: Sequence[Sequence[int]], ks: Sequence[int]) -> Values:
    """GeneCIS's R@k: 1 where the target, the first of a query's gallery, is among its first k; it wins ties.

    `tied`: 1 where another of the gallery scores as much as the target.
    """
    rank, tied = np.zeros(len(queries)), np.zeros(len(queries))
    for row, (query, gallery) in enumerate(zip(queries, galleries, strict=True)):
        # einsum adds up every row in the same order: equal vectors have equal scores, wherever they stand
        scores = np.einsum("nd,d->n", candidates[np.asarray(gallery)], query)
        rank[row] = np.count_nonzero(scores > scores[0])
        tied[row] = np.any(scores[1:] == scores[0])
    return {**{f"R@{k}": (rank < k).astype(np.float64) for k in ks}, "tied": tied}


def pairwise(queries: Vectors, right: Vectors, wrong: Vectors) -> Values:
    """Accuracy: 1 where the right one scores more than the wrong one. All (queries, dimensions)."""
    better = np.einsum("nd,nd->n", queries, right) > np.einsum("nd,nd->n", queries, wrong)
    return {"accuracy": better.astype(np.float64)}


@dataclass(frozen=True, slots=True)
class Summary:
    """Means of values: of each part, of the parts (macro: every part counts the same), of all queries (micro)."""

    parts: dict[str, dict[str, float]]
    macro: dict[str, float]
    micro: dict[str, float]


def summarise(parts: Mapping[str, Values]) -> Summary:
    """The parts of one column, by name. What LamRA prints for GeneCIS and SugarCrepe seems to be the macro mean."""
    if not parts or any(len(values) == 0 for part in parts.values() for values in part.values()):
        raise InputError(
            "a part without queries has no mean", "leave it out, or check its files: mbeir-cot zero-shot check ROOT"
        )
    metrics = list(next(iter(parts.values())))
    means = {name: {metric: float(part[metric].mean()) for metric in metrics} for name, part in parts.items()}
    return Summary(
        means,
        {metric: float(np.mean([part[metric] for part in means.values()])) for metric in metrics},
        {metric: float(np.concatenate([part[metric] for part in parts.values()]).mean()) for metric in metrics},
    )
