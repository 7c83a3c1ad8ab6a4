"""Hit rates and each dataset-task's k. Whole searches are compared with UniIR's in test_uniir_files."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.mbeir import DatasetTask
from trainer.evaluation.hit_rates import headline_k, hit_rates, metric_ks


def test_hits_count_over_all_queries_and_a_missing_candidate_is_a_miss() -> None:
    found = np.array([[1, 2, 3], [4, -1, -1], [7, 8, 9]])
    assert hit_rates(found, [{3}, {5}, {7, 1}], (1, 2, 3)) == {1: 0.3333, 2: 0.3333, 3: 0.6667}


def test_a_query_that_could_not_be_read_is_a_miss() -> None:
    found = np.array([[1, 2], [3, 4]])
    assert hit_rates(found, [{1}, {4}], (1, 2), unreadable=2) == {1: 0.25, 2: 0.5}


@pytest.mark.parametrize(
    ("task", "ks", "headline"),
    [
        (DatasetTask("cirr", 7), (1, 5, 10), 5),
        (DatasetTask("fashioniq", 7), (10, 20, 50), 10),
        (DatasetTask("fashion200k", 3), (10, 20, 50), 10),
    ],
)
def test_fashion_is_scored_at_larger_ks(task: DatasetTask, ks: tuple[int, ...], headline: int) -> None:
    assert (metric_ks(task), headline_k(task)) == (ks, headline)
