"""A wanted number of records: exactly so many, the same ones for any rounds, and what was left."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.annotate.wanted_records import Acceptance
from pipeline.dataset.arrow_schema import RECORDS, REJECTIONS
from pipeline.dataset.chosen_queries import Chosen
from pipeline.dataset.near_duplicates import find_repeats
from pipeline.dataset.staging import Chunk, Staging
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.work_list import WorkList, collect
from schemas.config import BuildConfig, InputConfig
from schemas.mbeir import Query

QUERIES = {"cirr": (8, 7, 300), "mscoco": (9, 0, 200), "nights": (4, 4, 40)}
"""Dataset -> (id, task, queries)."""

Fate = Callable[[Query], tuple[str, int] | None]
"""Of a query: its record's (route, near-duplicate key), or None for a rejection."""


def fate(query: Query) -> tuple[str, int] | None:
    number = int(query.qid[2:])
    if number % 3 == 0:
        return None
    if number % 5 == 0:
        return "bypass", 0
    return "reasoning", number // 7 + 1 if query.task_id == 7 else number + 1_000_000 * (query.task_id + 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mbeir")
    (root / "query" / "train").mkdir(parents=True)
    modality = {0: "text", 4: "image", 7: "image,text"}
    for name, (dataset, task, count) in QUERIES.items():
        rows = [
            {
                "qid": f"{dataset}:{n}", "query_txt": "a" if task != 4 else None, "query_img_path": None if task == 0 else "q.jpg",
                "query_modality": modality[task], "query_src_content": None, "pos_cand_list": ["9:1"], "neg_cand_list": [],
                "task_id": task,
            }
            for n in range(1, count + 1)
        ]  # fmt: skip
        (root / "query" / "train" / f"mbeir_{name}_train.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return root


def ids(work: WorkList) -> list[str]:
    return [Query.model_validate_json(item.line).qid for item in work.read(0, len(work))]


class Runner:
    """Annotates as a dispatcher does, in chunks; `asked` counts."""

    def __init__(self, fate: Fate, chunk: int) -> None:
        self.fate, self.chunk = fate, chunk
        self.asked: Counter[str] = Counter()

    def __call__(self, work: WorkList, staging: Staging) -> None:
        for number, start in enumerate(range(0, len(work), self.chunk)):
            queries = [Query.model_validate_json(item.line) for item in work.read(start, start + self.chunk)]
            self.asked.update(query.qid for query in queries)
            kept = [(query, found) for query in queries if (found := self.fate(query)) is not None]
            rows = [
                {"dataset": query.dataset_task.dataset, "task_id": query.task_id, "qid": query.qid, "route": found[0]}
                for query, found in kept
            ]
            keys = np.array([found[1] for _, found in kept], np.int64)
            staging.put(number, Chunk(pa.Table.from_pylist(rows, schema=RECORDS), REJECTIONS.empty_table(), keys))


def accepted(
    root: Path, directory: Path, runner: Runner, *, on_reject: str = "reject", **accept: Any
) -> tuple[Chosen, list[dict[str, Any]]]:
    """What was chosen, and the records that a dataset of it has."""
    work = collect(Layout.open(root), InputConfig(), rejects=directory / "rejects.jsonl")
    config = BuildConfig.model_validate({
        "mbeir": root, "teacher": {"hosting": "external", "endpoints": [{"url": "http://x/v1", "model": "m"}]},
        "accept": accept, "on_reject": on_reject,
    })  # fmt: skip
    with Staging(directory / "staging") as staging:
        chosen = Acceptance(work, config).annotate(runner, staging)
        repeats = find_repeats(staging)
        records = []
        for number in range(len(staging)):
            drop = set(repeats.get(number, np.empty(0, np.int64)).tolist())
            records += [row for i, row in enumerate(staging.get(number)[0].to_pylist()) if i not in drop]
    return chosen, records


@pytest.mark.parametrize("per", ["all", "dataset-task"])
@pytest.mark.parametrize("count", ["all", "reasoning"])
def test_there_are_exactly_as_many_records_as_wanted(root: Path, tmp_path: Path, per: str, count: str) -> None:
    runner = Runner(fate, 32)
    chosen, records = accepted(root, tmp_path, runner, records=25, per=per, count=count)
    counted = [row for row in records if count == "all" or row["route"] == "reasoning"]
    by_task = Counter(row["dataset"] for row in counted)
    if per == "all":
        assert len(counted) == 25
        assert chosen.short == {}
    else:
        expected = min(25, sum(found is not None and (count == "all" or found[0] == "reasoning") for found in _nights()))
        assert by_task == {"cirr": 25, "mscoco": 25, "nights": expected}
        assert chosen.short == ({"nights_task4": expected} if expected < 25 else {})
    assert len(chosen.work) + sum(chosen.left.values()) == 540
    assert len(runner.asked) < 540


def _nights() -> list[tuple[str, int] | None]:
    query = {"query_txt": None, "query_img_path": "q.jpg", "query_modality": "image", "pos_cand_list": ["9:1"]}
    return [fate(Query.model_validate(query | {"qid": f"4:{n}", "neg_cand_list": [], "task_id": 4})) for n in range(1, 41)]


def test_rounds_chunks_and_what_was_asked_before_do_not_change_the_choice(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, _ = accepted(root, tmp_path, Runner(fate, 32), records=30, per="dataset-task")
    monkeypatch.setattr("pipeline.annotate.wanted_records._LEAST_ROUND", 1)
    small, _ = accepted(root, tmp_path, Runner(fate, 5), records=30, per="dataset-task")
    monkeypatch.setattr("pipeline.annotate.wanted_records._LEAST_ROUND", 500)
    large, _ = accepted(root, tmp_path, Runner(fate, 128), records=30, per="dataset-task")
    assert ids(wanted.work) == ids(small.work) == ids(large.work)
    assert wanted.left == small.left == large.left


def test_a_larger_number_contains_a_smaller_one(root: Path, tmp_path: Path) -> None:
    small, large = (accepted(root, tmp_path, Runner(fate, 32), records=number)[0] for number in (20, 90))
    assert set(ids(small.work)) < set(ids(large.work))


def test_an_input_with_too_few_is_used_up_and_said(root: Path, tmp_path: Path) -> None:
    chosen, records = accepted(root, tmp_path, Runner(fate, 32), records=5000)
    assert len(chosen.work) == 540
    assert chosen.left == {}
    assert chosen.short == {"all": len(records)}


def test_near_duplicates_that_become_bypass_records_count(root: Path, tmp_path: Path) -> None:
    chosen, _ = accepted(root, tmp_path, Runner(fate, 32), records=60, per="dataset-task", on_reject="bypass")
    cirr = [qid for qid in ids(chosen.work) if qid.startswith("8:")]
    assert sum(fate_of(qid) is not None for qid in cirr) == 60


def fate_of(qid: str) -> tuple[str, int] | None:
    query = {"query_txt": "a", "query_img_path": "q.jpg", "query_modality": "image,text", "pos_cand_list": ["9:1"]}
    return fate(Query.model_validate(query | {"qid": qid, "neg_cand_list": [], "task_id": 7}))


def test_answers_that_come_late_are_counted(root: Path, tmp_path: Path) -> None:
    """Requests without an answer in the rounds are answered when the dataset's rows are made."""
    runner: Runner

    def late(query: Query) -> tuple[str, int] | None:
        lost = int(query.qid[2:]) % 4 == 1 and runner.asked[query.qid] == 1
        return None if lost else fate(query)

    runner = Runner(late, 32)
    chosen, records = accepted(root, tmp_path, runner, records=40)
    assert len(records) == 40
    assert ids(chosen.work) == ids(accepted(root, tmp_path, Runner(fate, 32), records=40)[0].work)
