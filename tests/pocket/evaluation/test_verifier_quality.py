from __future__ import annotations

import pytest

from pocket.evaluation.verifier_quality import recall_at


@pytest.mark.parametrize(
    ("lost", "threshold", "recall"), [(0.0, 0.2, 0.5), (0.05, 0.2, 0.5), (0.25, 0.6, 0.75), (0.5, 0.9, 1.0)]
)
def test_the_threshold_loses_no_more_right_traces_than_allowed(lost: float, threshold: float, recall: float) -> None:
    scores = [0.9, 0.95, 0.6, 0.2, 0.1, 0.15, 0.3, 0.6]
    right = [True, True, True, True, False, False, False, False]
    assert recall_at(scores, right, lost) == (threshold, recall)
    assert sum(score < threshold for score, good in zip(scores, right, strict=True) if good) <= lost * 4


def test_equal_scores_are_kept_together() -> None:
    assert recall_at([0.5] * 4 + [0.5, 0.4], [True] * 4 + [False, False], 0.5) == (0.5, 0.5)
