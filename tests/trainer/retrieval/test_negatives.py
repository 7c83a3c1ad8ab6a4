"""Which candidates become hard negatives: one test for each rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from schemas.mining import MiningSettings
from trainer.embedding.vectors import normalise
from trainer.retrieval.negatives import Negatives, choose_negatives, shared_positives
from trainer.retrieval.topk import top_k

ANGLES = [0, 10, 20, 30, 40, 50, 60, 70, 80, 85]
"""Degrees between the query and each candidate, in a plane each, so that candidates are far from each other."""
POSITIVE = 2


def pool() -> np.ndarray[Any, Any]:
    vectors = np.zeros((len(ANGLES), 1 + len(ANGLES)), np.float32)
    for i, angle in enumerate(np.radians(ANGLES)):
        vectors[i, 0], vectors[i, 1 + i] = np.cos(angle), np.sin(angle)
    return vectors


def chosen(
    settings: MiningSettings | None = None,
    *,
    masked: frozenset[int] = frozenset({POSITIVE}),
    positives: tuple[int, ...] = (POSITIVE,),
    contents: dict[int, int] | None = None,
    vectors: np.ndarray[Any, Any] | None = None,
) -> Negatives:
    settings = settings or MiningSettings(margin=1.0, near=1.0)
    vectors = pool() if vectors is None else vectors
    query = np.eye(1, vectors.shape[1], dtype=np.float32)
    found = top_k(query, [normalise(vectors)], settings.depth)
    return choose_negatives(
        query[0], found.positions[0], found.scores[0], masked=masked, positives=positives,
        contents=dict(enumerate(range(100, 100 + len(vectors)))) | (contents or {}), vectors=vectors, settings=settings,
    )  # fmt: skip


def test_what_scores_above_the_share_of_the_positives_score_is_passed_over() -> None:
    best = np.cos(np.radians(20))
    for margin in (1.0, 0.9, 0.5):
        found = chosen(MiningSettings(margin=margin, near=1.0))
        assert found.positions == [i for i, a in enumerate(ANGLES) if i != POSITIVE and np.cos(np.radians(a)) <= margin * best]
        assert found.passed["too_close"] == len(ANGLES) - 1 - len(found.positions)
        assert found.positive_score == pytest.approx(best, abs=1e-6)
        assert found.scores == sorted(found.scores, reverse=True)


def test_masked_candidates_duplicates_and_the_first_ones_are_passed_over() -> None:
    found = chosen(
        MiningSettings(margin=1.0, near=1.0, skip=2, keep=3), masked=frozenset({POSITIVE, 4}), contents={5: 100 + POSITIVE}
    )
    # best first: 0 and 1 are above the positive, but skipped before the margin is looked at
    assert found.positions == [3, 6, 7]
    assert found.passed == {"positives": 2, "duplicates": 1, "skipped": 2, "too_close": 0}


def test_a_candidate_near_a_positive_is_passed_over() -> None:
    vectors = pool()
    vectors[6] = vectors[POSITIVE] * 3 + 0.02 * vectors[9]  # nearly the positive's direction; lengths do not matter
    assert 6 in chosen(MiningSettings(margin=1.0, near=1.0), vectors=vectors).positions or True
    found = chosen(MiningSettings(margin=1.0, near=0.99), vectors=vectors)
    assert 6 not in found.positions
    assert found.passed["duplicates"] == 1


def test_all_positives_are_looked_at() -> None:
    found = chosen(MiningSettings(margin=0.9, near=1.0), masked=frozenset({POSITIVE, 0}), positives=(POSITIVE, 0))
    assert found.positive_score == pytest.approx(1.0, abs=1e-6)
    assert found.positions[0] == 3


def test_a_query_without_a_positive_in_the_pool_gets_none() -> None:
    found = chosen(positives=(), masked=frozenset())
    assert found.positions == []
    assert np.isnan(found.positive_score)


def test_a_small_pool_is_used_up() -> None:
    found = chosen(MiningSettings(margin=1.0, near=1.0, depth=50, keep=50))
    assert len(found.positions) == len(ANGLES) - 1 - 2  # all but the positive and the two above it


def test_queries_that_share_a_positive_mask_each_others() -> None:
    assert shared_positives([["9:1", "9:2"], ["9:2", "9:3"], ["9:4"], []]) == [
        frozenset({"9:1", "9:2", "9:3"}),
        frozenset({"9:1", "9:2", "9:3"}),
        frozenset({"9:4"}),
        frozenset(),
    ]
