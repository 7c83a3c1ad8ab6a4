"""Which of a query's best candidates are hard negatives: the rules that keep right answers out.

Without them mined negatives do harm: benchmarks list few of the right answers, and a loss that pushes the others away makes the
embeddings collapse. In this order a candidate is passed over that is

1. a positive of the query, or of a query that shares a positive with it;
2. the same as a positive by text and image, or near it by cosine (`MiningSettings.near`);
3. among the first ones that are left (`skip`);
4. too close to the positive by score (`margin`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.mining import MiningSettings
from trainer.embedding.vectors import Vectors, normalise


class Negatives(NamedTuple):
    """A query's negatives as positions in the index, hardest first, with their scores."""

    positions: list[int]
    scores: list[float]
    positive_score: float
    """Of its best positive in the index; NaN without one."""
    passed: Mapping[str, int]
    """Rule -> candidates that it passed over."""


def shared_positives(positives: Sequence[Sequence[str]]) -> list[frozenset[str]]:
    """For each query the positives of all queries that share one with it, its own included."""
    of_did: dict[str, set[str]] = {}
    for listed in positives:
        for did in listed:
            of_did.setdefault(did, set()).update(listed)
    return [frozenset().union(*(of_did[did] for did in listed)) if listed else frozenset() for listed in positives]


def choose_negatives(
    query_D: Vectors,
    positions_K: NDArray[np.int64],
    scores_K: Vectors,
    *,
    masked: frozenset[int],
    positives: Sequence[int],
    contents: Mapping[int, int],
    vectors: NDArray[np.floating],
    settings: MiningSettings,
) -> Negatives:
    """The negatives of one query.

    positions_K, scores_K: its best candidates, best first; -1 where the pool has no more. masked: positions that rule 1 passes
    over. positives: the query's own. contents: position -> digest of text and image, of all these. vectors: of the index.
    """
    units_PD = normalise(np.asarray(vectors[list(positives)])) if positives else np.empty((0, len(query_D)), np.float32)
    best = float((units_PD @ query_D).max()) if len(units_PD) else float("nan")
    same = {contents[position] for position in positives}
    passed: Counter[str] = Counter()
    left: list[tuple[int, float]] = []
    for position, score in zip(positions_K.tolist(), scores_K.tolist(), strict=True):
        if position < 0:
            break
        if position in masked:
            passed["positives"] += 1
        elif contents[position] in same:
            passed["duplicates"] += 1
        else:
            left.append((position, score))
    near = _near(left, units_PD, vectors, settings.near)
    passed["duplicates"] += sum(near)
    left = [one for one, is_near in zip(left, near, strict=True) if not is_near]
    passed["skipped"] = min(settings.skip, len(left))
    left = left[settings.skip :]
    far = [one for one in left if not one[1] > settings.margin * best] if units_PD.size else []
    passed["too_close"] = len(left) - len(far) if units_PD.size else 0
    far = far[: settings.keep]
    return Negatives([position for position, _ in far], [score for _, score in far], best, passed)


def _near(left: Sequence[tuple[int, float]], units_PD: Vectors, vectors: NDArray[np.floating], near: float) -> list[bool]:
    if not left or not len(units_PD):
        return [False] * len(left)
    candidates_KD = normalise(np.asarray(vectors[[position for position, _ in left]]))
    found: list[bool] = ((candidates_KD @ units_PD.T).max(1) >= near).tolist()
    return found
