"""The numbers are those of the reference code on the same vectors; ties do what the docstrings say.

`REFERENCE` was computed once with the references' own functions on the vectors that `reference_inputs` makes: LamRA 7286399
(recall_at_k, compute_recall_at_k, and the loops of its GeneCIS, VIST and SugarCrepe scorers), CIRCO 267b5c9 (compute_metrics).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise as pairwise_of

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InputError
from trainer.zero_shot.scorers import Values, average_precision, gallery_hits, hits, pairwise, ranked, summarise
from trainer.zero_shot.scoring import score
from trainer.zero_shot.tasks import Candidate, Measure, Query, Task

REFERENCE = {
    "t2i": {"R@1": 0.18, "R@5": 0.52, "R@10": 0.7866666667},
    "i2t": {"R@1": 0.3, "R@5": 0.6, "R@10": 0.8333333333},
    "mt-fiq": {"R@5": 0.65, "R@8": 0.775, "R@10": 0.825},
    "vist": {"R@1": 0.325, "R@5": 0.75, "R@10": 0.8},
    "circo": {
        "mAP@5": 0.16294444444444445,
        "mAP@10": 0.15909138007054674,
        "mAP@25": 0.18540577449402618,
        "mAP@50": 0.2067280245741767,
        "R@5": 0.13333333333333333,
        "R@10": 0.26666666666666666,
        "R@25": 0.5333333333333333,
        "R@50": 0.7,
    },
    "genecis": {"R@1": 0.3, "R@2": 0.52, "R@3": 0.7},
    "pairs": {"accuracy": 0.75},
}


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def vectors(seed: int, rows: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(rows, 8)))


def chosen(seed: int, of: np.ndarray | int, number: int) -> list[int]:
    return [int(one) for one in np.random.default_rng(seed).choice(of, number, replace=False)]


def task(measure: Measure, ks: tuple[int, ...], queries: list[Query], ids: list[str]) -> Task:
    return Task("t", "T", measure, ks, lambda: iter(queries), lambda: (Candidate(one, (one,)) for one in ids))


def names(places: list[int]) -> tuple[str, ...]:
    return tuple(map(str, places))


def reference_inputs(name: str) -> tuple[Task, np.ndarray, np.ndarray]:
    """(task, vectors of its queries, of its candidates)"""
    if name in ("t2i", "i2t"):
        images, texts = vectors(1, 30), vectors(2, 150)
        texts = unit(texts + 0.4 * images.repeat(5, 0))
        if name == "t2i":
            asked = [Query(str(at), ("?",), (str(at // 5),)) for at in range(150)]
            return task(Measure.HITS, (1, 5, 10), asked, [str(at) for at in range(30)]), texts, images
        asked = [Query(str(at), ("?",), names(list(range(5 * at, 5 * at + 5)))) for at in range(30)]
        return task(Measure.HITS, (1, 5, 10), asked, [str(at) for at in range(150)]), images, texts
    if name == "mt-fiq":  # the last ten are the first ten again by name
        pool = vectors(4, 60)
        asked = [Query(str(at), ("?",), (f"a{at % 50}",)) for at in range(40)]
        return (
            task(Measure.HITS, (5, 8, 10), asked, [f"a{at % 50}" for at in range(60)]),
            unit(vectors(3, 40) + 0.6 * pool[:40]),
            pool,
        )
    if name == "vist":
        pool = vectors(6, 80)
        seen = [chosen(100 + at, 80, 4) for at in range(40)]
        asked = [Query(str(at), ("?",), (str(at),), excluded=names(seen[at])) for at in range(40)]
        drawn = unit(vectors(5, 40) + 1.2 * pool[:40] + 0.8 * np.stack([pool[one].sum(0) for one in seen]) / 2)
        return task(Measure.HITS, (1, 5, 10), asked, [str(at) for at in range(80)]), drawn, pool
    if name == "circo":
        pool = vectors(8, 200)
        right = [chosen(200 + at, 200, 1 + at % 14) for at in range(30)]
        asked = [Query(str(at), ("?",), names(right[at])) for at in range(30)]
        drawn = unit(vectors(7, 30) + 1.5 * unit(np.stack([pool[one].sum(0) for one in right])))
        return task(Measure.AVERAGE_PRECISION, (5, 10, 25, 50), asked, [str(at) for at in range(200)]), drawn, pool
    if name == "genecis":
        pool = vectors(10, 120)
        galleries = [[at, *chosen(300 + at, np.arange(50, 120), 14)] for at in range(50)]
        for at in (3, 19, 31):  # the target stands in its gallery a second time
            galleries[at][7] = at
        asked = [Query(str(at), ("?",), (str(at),), gallery=names(galleries[at])) for at in range(50)]
        return (
            task(Measure.GALLERY_HITS, (1, 2, 3), asked, [str(at) for at in range(120)]),
            unit(vectors(9, 50) + 0.4 * pool[:50]),
            pool,
        )
    pool = vectors(12, 120)
    pool[20], pool[80] = pool[21], pool[81]  # ties
    asked = [Query(str(at), ("?",), (str(2 * at),), gallery=(str(2 * at), str(2 * at + 1))) for at in range(60)]
    return task(Measure.PAIRWISE, (1,), asked, [str(at) for at in range(120)]), unit(vectors(11, 60) + 0.3 * pool[::2]), pool


def means(values: Values) -> dict[str, float]:
    return {metric: float(one.mean()) for metric, one in values.items() if metric != "tied"}


@pytest.mark.parametrize("name", REFERENCE)
def test_numbers_are_the_references(name: str) -> None:
    assert means(score(*reference_inputs(name))) == pytest.approx(REFERENCE[name], abs=1e-7)


scores = st.lists(st.integers(-3, 3), min_size=1, max_size=12)


@given(scores, st.integers(1, 8), st.sets(st.integers(0, 11), max_size=4))
def test_ranking_is_sorting(given_scores: list[int], depth: int, passed: set[int]) -> None:
    pool = np.asarray(given_scores, np.float32)[:, None]
    excluded = sorted(at for at in passed if at < len(pool))
    found = ranked(np.ones((1, 1), np.float32), pool, depth, excluded=[excluded])[0]
    left = [at for at in range(len(pool)) if at not in excluded]
    assert len(found) == depth
    kept = [int(at) for at in found if at >= 0]
    assert len(kept) == len(set(kept)) == min(depth, len(left))
    assert not set(kept) & set(excluded)
    assert [given_scores[at] for at in kept] == sorted((given_scores[at] for at in left), reverse=True)[:depth]
    assert all(a > b for a, b in pairwise_of(kept) if given_scores[a] == given_scores[b]), "of equals the later first"


rankings = st.lists(
    st.tuples(st.permutations("abcdefgh"), st.sets(st.sampled_from("abcdefgh"), min_size=1)), min_size=1, max_size=5
)


@given(rankings, st.lists(st.integers(1, 10), min_size=1, max_size=3, unique=True))
def test_hits_and_average_precision_are_their_definitions(drawn: list[tuple[list[str], set[str]]], ks: list[int]) -> None:
    found, right = [ids for ids, _ in drawn], [sorted(positives) for _, positives in drawn]
    hit, precision = hits(found, right, ks), average_precision(found, right, ks)
    for row, (ids, positives) in enumerate(zip(found, right, strict=True)):
        for k in ks:
            assert hit[f"R@{k}"][row] == bool(set(ids[:k]) & set(positives))
            assert precision[f"R@{k}"][row] == (positives[0] in ids[:k])
            gained = sum(
                len(set(ids[: at + 1]) & set(positives)) / (at + 1) for at in range(min(k, len(ids))) if ids[at] in positives
            )
            assert precision[f"mAP@{k}"][row] == pytest.approx(gained / min(len(positives), k))


@given(st.lists(scores, min_size=1, max_size=4), st.integers(1, 4))
def test_a_target_wins_ties_in_its_gallery_and_a_pair_does_not(drawn: list[list[int]], k: int) -> None:
    queries = np.ones((len(drawn), 1), np.float32)
    pool = np.asarray([value for gallery in drawn for value in gallery], np.float32)[:, None]
    ends = np.cumsum([len(gallery) for gallery in drawn])
    galleries = [list(range(end - len(gallery), end)) for end, gallery in zip(ends.tolist(), drawn, strict=True)]
    values = gallery_hits(queries, pool, galleries, [k])
    for row, gallery in enumerate(drawn):
        order = sorted(range(len(gallery)), key=lambda at: -gallery[at])  # stable
        assert values[f"R@{k}"][row] == (0 in order[:k])
        assert values["tied"][row] == (gallery[0] in gallery[1:])
    last = [gallery[-1] for gallery in drawn]
    right, wrong = (pool[[gallery[at] for gallery in galleries]] for at in (0, -1))
    assert pairwise(queries, right, wrong)["accuracy"].tolist() == [a[0] > b for a, b in zip(drawn, last, strict=True)]


def test_equal_vectors_tie_wherever_they_stand() -> None:
    """In a product of matrices they need not: the last rows of a block may be summed up in another order."""
    rng = np.random.default_rng(3)
    for length in (15, 13, 10, 5, 3):
        pool = unit(rng.normal(size=(1, 33))).repeat(length, 0)
        values = gallery_hits(unit(rng.normal(size=(40, 33))), pool, [list(range(length))] * 40, (1,))
        assert (values["R@1"].min(), values["tied"].min()) == (1, 1)


def test_a_collapsed_embedder_is_seen() -> None:
    asked, queries, pool = reference_inputs("genecis")
    values = score(
        asked, np.ones_like(queries) / np.sqrt(8, dtype=np.float32), np.ones_like(pool) / np.sqrt(8, dtype=np.float32)
    )
    assert (values["R@1"].mean(), values["tied"].mean()) == (1, 1)
    asked, queries, pool = reference_inputs("pairs")
    assert score(asked, np.ones_like(queries) / np.sqrt(8, dtype=np.float32), pool * 0 + pool[0])["accuracy"].mean() == 0


def test_macro_counts_parts_and_micro_counts_queries() -> None:
    found = summarise({"a": {"R@1": np.asarray([1.0, 1.0, 1.0, 0.0])}, "b": {"R@1": np.asarray([0.0])}})
    assert (found.parts, found.macro, found.micro) == ({"a": {"R@1": 0.75}, "b": {"R@1": 0.0}}, {"R@1": 0.375}, {"R@1": 0.6})
    for parts in ({}, {"a": {"R@1": np.asarray([])}}):
        with pytest.raises(InputError, match="without queries"):
            summarise(parts)


def wrong(case: str) -> None:
    asked, queries, pool = reference_inputs("vist")
    broken = queries.copy()
    broken[3, 2] = np.nan
    {
        "unlabelled": lambda: score(replace(asked, labelled=False), queries, pool),
        "rows": lambda: score(asked, queries[1:], pool),
        "dimensions": lambda: score(asked, unit(queries[:, 1:]), pool),
        "length": lambda: score(asked, queries, 2 * pool),
        "nan": lambda: score(asked, broken, pool),
        "stranger": lambda: score(
            replace(asked, candidates=lambda: (Candidate(f"x{at}", ("x",)) for at in range(80))), queries, pool
        ),
        "twice": lambda: average_precision([["a", "a"]], [["a"]], [5]),
        "no label": lambda: average_precision([["a", "b"]], [[]], [5]),
    }[case]()


@pytest.mark.parametrize(
    ("case", "message"),
    {
        "unlabelled": "t: its right answers are not published",
        "rows": r"t: 40 queries, but vectors of shape \(39, 8\)",
        "dimensions": "t: queries have 7 dimensions, candidates 8",
        "length": r"t: vector 0 of its candidates has not length 1 \(80 such\)",
        "nan": r"t: vector 3 of its queries has not length 1 \(1 such\)",
        "stranger": "t: query 0 names the candidate",
        "twice": "ranked twice",
        "no label": "no right answer",
    }.items(),
)
def test_wrong_vectors_are_refused(case: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        wrong(case)
