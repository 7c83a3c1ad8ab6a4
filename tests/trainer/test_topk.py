from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import topk
from trainer.topk import LOWEST, MISSING, blocks, normalised, top_k


def by_heap(queries: np.ndarray, pool: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The rule as it is told, item by item: slow, and written apart from the implementation."""
    positions, scores = [], []
    for query in queries:
        kept: list[tuple[float, int]] = []
        for place, vector in enumerate(pool):
            score = float(np.float32(query @ vector))
            if np.isnan(score):
                continue
            if len(kept) < k:
                kept.append((score, place))
                continue
            worst = min(kept)  # the lowest score, of these the earliest
            if score > worst[0]:
                kept.remove(worst)
                kept.append((score, place))
        kept.sort(reverse=True)
        missing = k - len(kept)
        positions.append([place for _, place in kept] + [MISSING] * missing)
        scores.append([score for score, _ in kept] + [float(LOWEST)] * missing)
    return np.array(positions), np.array(scores, np.float32)


def grid(rng: np.random.Generator, rows: int, levels: int) -> np.ndarray:
    """Vectors whose products are exact in any order of summation, with many ties."""
    return rng.integers(-levels, levels + 1, (rows, 4)).astype(np.float32)


@settings(max_examples=150)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 60),
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(1, 70),
    st.integers(1, 16),
    st.booleans(),
)
def test_it_keeps_and_orders_ties_as_the_rule_says(
    seed: int, rows: int, k: int, levels: int, block: int, first: int, rising: bool
) -> None:
    """`first`: rows until the first merge. `rising`: every row enters for the first query, so that merges come early."""
    rng = np.random.default_rng(seed)
    queries, pool = grid(rng, 5, levels), grid(rng, rows, levels)
    if rising:
        pool = pool[np.argsort(pool @ queries[0], kind="stable")]
    with patch.object(topk, "_FIRST_ROWS", first):
        found = top_k(queries, (pool[i : i + block] for i in range(0, rows, block)), k)
    positions, scores = by_heap(queries, pool, k)
    np.testing.assert_array_equal(found.positions, positions)
    np.testing.assert_array_equal(found.scores, scores)


@pytest.mark.parametrize("k", [1, 5, 10, 50])
@pytest.mark.parametrize("levels", [1, 2, 5])
def test_it_gives_what_faiss_gives(k: int, levels: int) -> None:
    rng = np.random.default_rng(k * 10 + levels)
    queries, pool = grid(rng, 40, levels), grid(rng, 3000, levels)
    index = faiss.IndexFlatIP(4)
    index.add(pool)
    scores, positions = index.search(queries, k)
    found = top_k(queries, blocks_of(pool, 700), k)
    np.testing.assert_array_equal(found.positions, positions)
    np.testing.assert_array_equal(found.scores, scores)


def blocks_of(pool: np.ndarray, rows: int) -> list[np.ndarray]:
    return [pool[i : i + rows] for i in range(0, len(pool), rows)]


def test_normalisation_is_faiss_own_and_leaves_zeros() -> None:
    vectors = np.random.default_rng(1).normal(size=(50, 7)).astype(np.float32)
    vectors[3] = 0
    expected = vectors.copy()
    faiss.normalize_L2(expected)
    given_before = vectors.copy()
    np.testing.assert_allclose(normalised(vectors), expected, rtol=0, atol=2e-7)
    np.testing.assert_array_equal(vectors, given_before)
    assert not normalised(vectors)[3].any()


def test_a_pool_on_disk_is_read_in_blocks(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    pool = rng.normal(size=(500, 8)).astype(np.float16)
    np.save(tmp_path / "pool.npy", pool)
    mapped = np.load(tmp_path / "pool.npy", mmap_mode="r")
    queries = normalised(rng.normal(size=(9, 8)))
    found = top_k(queries, blocks(mapped, 64), 5)
    exact = queries @ normalised(pool).T
    np.testing.assert_array_equal(found.positions, np.argsort(-exact, axis=1)[:, :5])


def test_queries_that_are_not_numbers_find_nothing() -> None:
    pool = np.eye(3, dtype=np.float32)
    found = top_k(np.full((1, 3), np.nan, np.float32), [pool], 2)
    assert found.positions.tolist() == [[MISSING, MISSING]]
    assert (found.scores == LOWEST).all()
