from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from unittest.mock import patch

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.embedding.vectors import normalise, read_blocks
from trainer.retrieval import topk
from trainer.retrieval.topk import LOWEST, MISSING, TopK, top_k, top_k_each
from trainer.retrieval.topk_device import scan_pool


def by_heap(queries: np.ndarray, pool: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The rule item by item, implemented independently: slow."""
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
            worst = min(kept)  # the lowest score, the earliest among equals
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
def test_ties_are_kept_and_ordered_by_the_rule(
    seed: int, rows: int, k: int, levels: int, block: int, first: int, rising: bool
) -> None:
    """`first`: candidates until the first merge. `rising`: all enter for the first query, so that merges come early."""
    rng = np.random.default_rng(seed)
    queries, pool = grid(rng, 5, levels), grid(rng, rows, levels)
    if rising:
        pool = pool[np.argsort(pool @ queries[0], kind="stable")]
    with patch.object(topk, "_FIRST_ROWS", first):
        found = top_k(queries, (pool[i : i + block] for i in range(0, rows, block)), k)
    positions, scores = by_heap(queries, pool, k)
    np.testing.assert_array_equal(found.positions, positions)
    np.testing.assert_array_equal(found.scores, scores)


def on_tensors(parts: list[tuple[np.ndarray, int]], pool: Iterable[np.ndarray]) -> list[TopK]:
    """The GPU's scan, with tensors on the CPU."""
    return [topk.sort_hits(*kept) for kept in scan_pool(parts, pool, torch.device("cpu"))]


@pytest.mark.slow
@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 60),
    ks=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    levels=st.integers(1, 3),
    block=st.integers(1, 70),
    odd=st.sampled_from(["", "nan", "-inf", "-0.0", "same"]),
)
def test_the_scan_on_tensors_follows_the_same_rule(
    seed: int, rows: int, ks: list[int], levels: int, block: int, odd: str
) -> None:
    """Several query sets in one pass; ties, pools smaller than k, blocks of any size, scores that are -0.0, NaN or -inf."""
    rng = np.random.default_rng(seed)
    pool = grid(rng, rows, levels)
    some = rng.random(rows) < 0.3
    if odd == "same":
        pool[some] = pool[0]
    elif odd == "-0.0":
        pool[some] = 0 * -np.abs(pool[some])
    elif odd:
        pool[some, 0] = float(odd)
    sets = [(np.abs(grid(rng, 4, levels)) + (odd == "-inf"), k) for k in ks]
    if odd == "-0.0":
        pool = np.concatenate([pool, -pool])
    parts = list(blocks_of(pool, block))
    with np.errstate(invalid="ignore"):
        found = on_tensors(sets, parts)
        by_numpy = top_k_each(sets, parts)
        for (queries, k), one, other in zip(sets, found, by_numpy, strict=True):
            positions, scores = by_heap(queries, pool, k)
            if odd == "-inf":  # the heap takes anything until it is full; the scans never take -inf
                positions, scores = other
            np.testing.assert_array_equal(one.positions, positions)
            np.testing.assert_array_equal(one.scores, scores)
            np.testing.assert_array_equal(one.positions, other.positions)
            np.testing.assert_array_equal(one.scores, other.scores)


def test_vectors_without_a_finite_length_are_reported_after_the_last_block() -> None:
    pool = np.ones((10, 3), np.float16)
    pool[2, 1], pool[7, 0] = np.nan, np.inf
    told: list[int] = []
    made = read_blocks(pool, 4, wrong=lambda rows: told.extend(rows.tolist()))
    assert len(next(made)) == 4
    assert not told
    assert len(list(made)) == 2
    assert told == [2, 7]
    assert len(list(read_blocks(pool[:2], wrong=lambda rows: pytest.fail(str(rows))))) == 1


@pytest.mark.parametrize("k", [1, 5, 10, 50])
@pytest.mark.parametrize("levels", [1, 2, 5])
def test_it_equals_faiss(k: int, levels: int) -> None:
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


def test_normalisation_equals_faiss_and_leaves_zeros() -> None:
    vectors = np.random.default_rng(1).normal(size=(50, 7)).astype(np.float32)
    vectors[3] = 0
    expected = vectors.copy()
    faiss.normalize_L2(expected)
    given_before = vectors.copy()
    np.testing.assert_allclose(normalise(vectors), expected, rtol=0, atol=2e-7)
    np.testing.assert_array_equal(vectors, given_before)
    assert not normalise(vectors)[3].any()


def test_a_pool_on_disk_is_read_in_blocks(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    pool = rng.normal(size=(500, 8)).astype(np.float16)
    np.save(tmp_path / "pool.npy", pool)
    mapped = np.load(tmp_path / "pool.npy", mmap_mode="r")
    queries = normalise(rng.normal(size=(9, 8)))
    found = top_k(queries, read_blocks(mapped, 64), 5)
    exact = queries @ normalise(pool).T
    np.testing.assert_array_equal(found.positions, np.argsort(-exact, axis=1)[:, :5])


def test_queries_of_nan_have_no_hits() -> None:
    pool = np.eye(3, dtype=np.float32)
    found = top_k(np.full((1, 3), np.nan, np.float32), [pool], 2)
    assert found.positions.tolist() == [[MISSING, MISSING]]
    assert (found.scores == LOWEST).all()
