"""Hit rates by the world's truth: groups, pooled over runs, from an evaluation's files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pipeline.mbeir.layout import Layout
from pipeline.mbeir.qrels import read_qrels
from pocket.evaluation.trace_quality import group_by_truth
from pocket.world.ground_truth import QueryTruth, Truth
from schemas.errors import InputError
from schemas.mbeir import DatasetTask
from schemas.record import record_id
from trainer.embedding.files import EmbeddingFiles
from trainer.evaluation.hit_rates import qrels_name
from trainer.evaluation.query_log import queries_file
from trainer.evaluation.run_files import run_file

TASK = DatasetTask("infoseek", 6)


def right_answer(truth: QueryTruth) -> str:
    return f"{truth.target.split(',')[0]} {truth.answer}"


def write_run(run: Path, world: Path, asked: list[QueryTruth]) -> Path:
    """Of the queries of one task, in turns: right trace and hit; wrong trace and miss, hit by `direct`; no trace and hit."""
    (run / "eval").mkdir(parents=True)
    qrels = read_qrels(Layout.open(world / "mbeir").root / "qrels" / "test" / qrels_name(TASK, "test"))
    positive = {qrel.qid: qrel.did for qrel in qrels if qrel.relevance > 0}
    lines: dict[str, list[str]] = {"trace": [], "direct": []}
    entries = []
    for number, truth in enumerate(asked):
        trace = ("", f"Fact: x.\n{right_answer(truth)}\n", "Fact: x.\nno such thing\n")[number % 3]
        lines["trace"].append(f"{truth.qid} Q0 {positive[truth.qid] if number % 3 < 2 else '9:0'} 1 0.5 run 6")
        lines["direct"].append(f"{truth.qid} Q0 {positive[truth.qid] if number % 3 == 2 else '9:0'} 1 0.5 run 6")
        known = {"id": record_id("test", TASK.dataset, TASK.task_id, truth.qid), "reasoned": bool(trace), "trace": trace}
        entries.append(known | {"confidence": -0.1 * (number % 3) if trace else None})
    queries_file(run / "eval", "trace", "test").write_text("\n".join(map(json.dumps, entries)) + "\n")
    for name, hits in lines.items():
        file = run_file(EmbeddingFiles(run / "eval", name), TASK, "single", "test")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(hits) + "\n")
    return run


def test_groups_by_kind_and_by_trace(world: Path, truth: Truth, tmp_path: Path) -> None:
    asked = [one for one in truth.queries if one.split == "test" and one.dataset_task == TASK.name]
    thinking = [one for one in asked if one.needs_reasoning][:12]
    simple = [one for one in asked if not one.needs_reasoning][:1]
    assert len(thinking) == 12
    runs = [write_run(tmp_path / name, world, [*thinking, *simple]) for name in ("a", "b")]
    found = group_by_truth(runs, world)
    kinds = {group.name: group for group in found.by_kind}
    assert (kinds["needs reasoning"].queries, kinds["needs none"].queries) == (24, 2)
    assert sum(group.queries for name, group in kinds.items() if name not in ("needs reasoning", "needs none")) == 24
    assert (kinds["needs reasoning"].local, kinds["needs reasoning"].direct_local) == (
        pytest.approx(2 / 3),
        pytest.approx(1 / 3),
    )
    assert kinds["needs reasoning"].union is None
    traces = {group.name: (group.queries, group.local, group.direct_local) for group in found.by_trace}
    assert traces["needs reasoning: right trace"] == (8, 1.0, 0.0)
    assert traces["needs reasoning: wrong trace"] == (8, 0.0, 1.0)
    assert traces["needs reasoning: no trace"] == (8, 1.0, 0.0)
    assert traces["needs none: no trace"] == (2, 1.0, 0.0)
    entities = {group.name: group.queries for group in found.by_unseen}
    assert entities["unseen entity"] == 2 * sum(one.unseen == "entity" for one in [*thinking, *simple])
    assert sum(count for name, count in entities.items() if "needs" not in name) == 26
    assert sum(count for name, count in entities.items() if "needs" in name) == 24
    assert found.confidence_auc == 1.0
    assert (found.routes_right, found.traces_right) == (
        pytest.approx(18 / 26),
        0.5,
    )  # a third of those that need it did not reason
    alone = group_by_truth([write_run(tmp_path / "c", world, simple)], world)
    assert math.isnan(alone.confidence_auc)
    assert math.isnan(alone.traces_right)
    assert alone.routes_right == 1.0


def test_another_world_or_no_evaluation_is_refused(world: Path, truth: Truth, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is missing"):
        group_by_truth([tmp_path], world)
    (one,) = [one for one in truth.queries if one.split == "test" and one.dataset_task == TASK.name][:1]
    run = write_run(tmp_path / "run", world, [one])
    file = queries_file(run / "eval", "trace", "test")
    file.write_text(file.read_text().replace(f"/{one.qid}", "/9:999999"))
    with pytest.raises(InputError, match="does not know test/infoseek/task6/9:999999"):
        group_by_truth([run], world)
