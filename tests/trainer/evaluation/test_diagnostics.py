"""What explains a table: groups of queries, and traces that are swapped."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.mbeir.layout import Layout
from schemas.mbeir import DatasetTask
from trainer.embedding.files import EmbeddingFiles
from trainer.evaluation.diagnostics import (
    PoolRanks,
    compare_swap,
    exchange_traces,
    group_by_agreement,
    group_by_confidence,
    group_by_difficulty,
    hit_rate,
    shuffle_words,
)
from trainer.evaluation.run_files import Ranked, read_ranks, run_file

CIRR = "test/cirr/task7/1:{}"


def test_run_files_give_the_best_positive_and_the_first(tmp_path: Path) -> None:
    (tmp_path / "qrels" / "test").mkdir(parents=True)
    task = DatasetTask("cirr", 7)
    (tmp_path / "qrels" / "test" / "mbeir_cirr_task7_test_qrels.txt").write_text(
        "1:1 0 8:3 1 7\n1:1 0 8:2 1 7\n1:2 0 8:9 1 7\n"
    )
    files = EmbeddingFiles(tmp_path / "eval", "trace")
    files.runs.mkdir(parents=True)
    lines = [f"1:{q} Q0 8:{did} {rank} 0.5 run 7" for q in (1, 2) for rank, did in enumerate((1, 2, 3), 1)]
    run_file(files, task, "single", "test").write_text("\n".join(lines) + "\n")
    layout = Layout(tmp_path)
    assert read_ranks(files, layout, [task], "single", "test") == {
        CIRR.format(1): Ranked(2, "8:1"),
        CIRR.format(2): Ranked(None, "8:1"),
    }
    assert read_ranks(files, layout, [task], "union", "test") == {}


def ranked(*ranks: int | None) -> PoolRanks:
    return PoolRanks(local={CIRR.format(i): Ranked(rank, f"8:{rank}") for i, rank in enumerate(ranks)})


def test_hits_are_counted_at_the_headline_k_and_unknown_queries_miss() -> None:
    found = ranked(5, 6, None, 1)
    assert hit_rate([CIRR.format(i) for i in range(4)], found.local) == 0.5
    assert hit_rate([CIRR.format(3), CIRR.format(9)], found.local) == 0.5
    assert hit_rate(["test/fashioniq/task7/9:1"], {"test/fashioniq/task7/9:1": Ranked(10, "7:1")}) == 1.0


def test_groups_by_difficulty() -> None:
    reasoned = {CIRR.format(i): i > 1 for i in range(4)}
    complexity = {CIRR.format(0): 0.1, CIRR.format(1): 0.19, CIRR.format(2): 1.0}  # the fourth was not assessed
    easy, hard = group_by_difficulty(reasoned, complexity, ranked(1, 9, 1, 1), ranked(1, 1, None, 1))
    assert (easy.name, easy.queries, easy.think_rate, easy.local, easy.direct_local) == (
        "P(complex) 0.0 to 0.2",
        2,
        0.0,
        0.5,
        1.0,
    )
    assert (hard.name, hard.queries, hard.think_rate, hard.local, hard.direct_local) == (
        "P(complex) 0.8 to 1.0",
        1,
        1.0,
        1.0,
        0.0,
    )
    assert easy.union is None


def test_groups_by_agreement() -> None:
    traces = {
        CIRR.format(i): f"Source: x.\n{answer}\n" for i, answer in enumerate(("A red cube", "a red big cube", "two dogs", "?"))
    }
    answers = {CIRR.format(i): "a red cube" for i in range(3)}
    groups = {group.name: (group.queries, group.local) for group in group_by_agreement(traces, answers, ranked(1, 9, 1, 1))}
    assert groups == {"same answer": (1, 1.0), "similar answer": (1, 0.0), "another answer": (1, 1.0)}


def test_groups_by_confidence() -> None:
    confidence = {CIRR.format(i): -1.0 - i for i in range(5)}
    groups = group_by_confidence(confidence, ranked(1, 1, 9, 9, 9), bypass=ranked(9, 9, 9, 1, 1))
    assert [(one.name, one.queries, one.local, one.bypass_local) for one in groups] == [
        ("confidence -5.000 to -4.000", 2, 0.0, 1.0),
        ("confidence -3.000 to -3.000", 1, 0.0, 0.0),
        ("confidence -2.000 to -2.000", 1, 1.0, 0.0),
        ("confidence -1.000 to -1.000", 1, 1.0, 0.0),
    ]
    assert group_by_confidence({}, ranked()) == ()


def test_a_swap_is_compared_with_the_own_trace() -> None:
    own = {CIRR.format(i): np.array([1.0, 0.0], np.float16) for i in range(3)}
    others = {CIRR.format(0): np.array([1.0, 0.0], np.float16), CIRR.format(1): np.array([0.0, 2.0], np.float16)}
    found = compare_swap("none", own, others, ranked(1, 2, 3), ranked(1, 9, 3))
    assert (found.queries, found.cosine, found.local, found.first_changed) == (2, 0.5, 0.5, 0.5)


@given(
    st.lists(st.tuples(st.sampled_from(("cirr/task7", "oven/task6", "edis/task2")), st.sampled_from("abc")), max_size=12),
    st.integers(0, 9),
)
def test_others_traces_are_of_the_task_and_never_the_same(drawn: list[tuple[str, str]], seed: int) -> None:
    traces = {f"test/{task}/1:{number}": text for number, (task, text) in enumerate(drawn)}
    found = exchange_traces(traces, seed)
    for identifier, text in found.items():
        task = identifier.rsplit("/", 1)[0]
        assert text != traces[identifier]
        assert text in {other for name, other in traces.items() if name.rsplit("/", 1)[0] == task}
    assert found == exchange_traces(dict(reversed(traces.items())), seed)


@given(st.lists(st.text("ab c.", min_size=1, max_size=12), min_size=2, max_size=3), st.integers(0, 5))
def test_shuffling_keeps_words_labels_and_lines(parts: list[str], seed: int) -> None:
    trace = f"Source: {parts[0]} Operation: {parts[1]}\n{parts[-1]}\n"
    (found,) = shuffle_words({CIRR.format(1): trace}, seed).values()
    assert Counter(found.split()) == Counter(trace.split())
    assert [len(line.split()) for line in found.splitlines()] == [len(line.split()) for line in trace.splitlines()]
    for label in ("Source:", "Operation:"):
        assert found.split().index(label) == trace.split().index(label)


def test_shuffling_changes_the_order() -> None:
    trace = f"Source: {' '.join(map(str, range(40)))}\nanswer\n"
    (found,) = shuffle_words({CIRR.format(1): trace}, 0).values()
    assert found != trace


def test_nothing_reasoned() -> None:
    assert exchange_traces({}, 0) == shuffle_words({}, 0) == {}
    assert group_by_agreement({}, {}, ranked()) == ()
