"""Small vectors: what they cost, what they find, and that rescored hits are those of the exact search."""

from __future__ import annotations

from pathlib import Path
from typing import cast, get_args

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import ConfigError, InputError
from trainer.embedding.vectors import Vectors, normalise
from trainer.retrieval.small_vectors import FILE, SmallFormat, SmallKind, SmallVectors, recall, rescore, truncate
from trainer.retrieval.topk import MISSING, top_k

KINDS = cast(tuple[SmallKind, ...], get_args(SmallKind))
kinds = pytest.mark.parametrize("kind", KINDS)


def corpus(seed: int, count: int = 60, dim: int = 32) -> Vectors:
    """Around a common direction, as embeddings are."""
    rng = np.random.default_rng(seed)
    return normalise(rng.standard_normal((count, dim)) + 2 * rng.standard_normal(dim))


def built(kind: SmallKind, vectors: Vectors, dims: int) -> SmallVectors:
    return SmallVectors.build(SmallFormat(kind=kind, dims=dims), vectors, [vectors[:7], vectors[7:]])


@kinds
@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), dims=st.sampled_from([8, 16, 32]), k=st.integers(1, 12))
def test_rescored_hits_are_the_exact_ones_if_the_candidates_hold_them(kind: SmallKind, seed: int, dims: int, k: int) -> None:
    vectors, queries = corpus(seed), corpus(seed + 1, 5)
    small = built(kind, vectors, dims)
    everything = small.search(queries, len(vectors))
    assert [sorted(row) for row in everything.tolist()] == [list(range(60))] * 5
    hits, exact = rescore(queries, everything, lambda held: vectors[held], k), top_k(queries, [vectors], k)
    # the two sum products in different orders: neighbours whose scores agree up to rounding may swap
    products_QC = queries @ vectors.T
    np.testing.assert_allclose(hits.scores, exact.scores, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(products_QC, hits.positions, 1), exact.scores, atol=1e-6)
    assert all(len(set(row)) == k for row in hits.positions.tolist())
    some = rescore(queries, small.search(queries, 2 * k), lambda held: vectors[held], k)
    assert (np.diff(some.scores, axis=1) <= 0).all()
    np.testing.assert_allclose(some.scores, np.take_along_axis(products_QC, some.positions, 1), atol=1e-6)
    assert (
        recall(exact.positions, some.positions) >= recall(exact.positions, small.search(queries, k)) - 0.21 / k
    )  # a swap at the edge


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), dims=st.sampled_from([8, 24, 32]))
def test_int8_is_wrong_by_no_more_than_its_steps(seed: int, dims: int) -> None:
    vectors, queries = corpus(seed), corpus(seed + 1, 5)
    short_CD, asked_QD = truncate(vectors, dims), truncate(queries, dims)
    scores_QC = asked_QD @ short_CD.T
    best_Q = built("int8", vectors, dims).search(queries, 1)[:, 0]
    steps_D = (short_CD.max(0) - short_CD.min(0)) / 255
    allowed_Q = 2 * np.abs(asked_QD) @ steps_D + 1e-6
    assert (scores_QC.max(1) - scores_QC[np.arange(5), best_Q] <= allowed_Q).all()


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), dims=st.sampled_from([8, 24, 32]))
def test_binary_counts_signs_around_the_mean(seed: int, dims: int) -> None:
    vectors, queries = corpus(seed), corpus(seed + 1, 5)
    short_CD, asked_QD = truncate(vectors, dims), truncate(queries, dims)
    mean_D = short_CD.mean(0)
    differ_QC = ((asked_QD > mean_D)[:, None] != (short_CD > mean_D)[None]).sum(2)
    best_Q = built("binary", vectors, dims).search(queries, 1)[:, 0]
    assert differ_QC[np.arange(5), best_Q].tolist() == differ_QC.min(1).tolist()


@given(seed=st.integers(0, 10_000), dims=st.integers(1, 32))
def test_truncated_vectors_are_unit_vectors_of_the_same_direction(seed: int, dims: int) -> None:
    vectors = corpus(seed, 10)
    short = truncate(vectors, dims)
    assert short.shape == (10, dims)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(short * np.linalg.norm(vectors[:, :dims], axis=1, keepdims=True), vectors[:, :dims], atol=1e-6)
    assert truncate(vectors, 32) == pytest.approx(vectors, abs=1e-6)


@kinds
def test_a_vector_takes_the_bytes_that_are_printed(kind: SmallKind, tmp_path: Path) -> None:
    sizes = []
    for count in (1_000, 3_000):
        small = built(kind, corpus(0, count), 16)
        small.write(tmp_path)
        sizes.append((tmp_path / FILE).stat().st_size)
    assert (sizes[1] - sizes[0]) / 2_000 == small.form.bytes == {"float16": 32, "int8": 16, "binary": 2}[kind]
    again = SmallVectors.read(tmp_path, small.form)
    queries = corpus(1, 4)
    np.testing.assert_array_equal(again.search(queries, 9), small.search(queries, 9))
    assert len(again) == 3_000


@kinds
def test_more_hits_than_vectors_are_missing(kind: SmallKind) -> None:
    vectors = corpus(0, 8)
    positions = built(kind, vectors, 8).search(vectors[:2], 12)
    assert (positions[:, 8:] == MISSING).all()
    hits = rescore(vectors[:2], positions, lambda held: vectors[held], 10)
    assert (hits.positions[:, 8:] == MISSING).all()
    assert hits.positions[:, 0].tolist() == [0, 1]
    assert rescore(vectors[:0], positions[:0], lambda held: vectors[held], 3).positions.shape == (0, 3)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    vectors = corpus(0)
    for kind, dims, said in (
        ("int8", 33, "the vectors have 32"),
        ("binary", 12, "whole bytes"),
        ("int8", 0, "the vectors have"),
    ):
        with pytest.raises(ConfigError, match=said):
            built(cast(SmallKind, kind), vectors, dims)
    with pytest.raises(InputError, match="--small"):
        SmallVectors.read(tmp_path, SmallFormat(kind="int8", dims=8))
    small = built("int8", vectors, 8)
    small.write(tmp_path)
    with pytest.raises(InputError, match="has 8 dimensions, not 16"):
        SmallVectors.read(tmp_path, SmallFormat(kind="int8", dims=16))
    faiss.write_index(faiss.IndexFlatIP(8), str(tmp_path / FILE))
    (tmp_path / FILE).write_bytes(b"damaged")
    with pytest.raises(InputError, match="small.faiss is damaged"):
        SmallVectors.read(tmp_path, small.form)
