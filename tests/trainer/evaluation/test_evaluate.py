"""Evaluation, index and search with the real commands: tables that can be recomputed from the files, no stale vectors."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from mbeir_cot.commands.retrieve import index as index_command
from mbeir_cot.commands.retrieve import search as search_command
from mbeir_cot.commands.train import evaluate
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.pools import CandidatePool
from pipeline.mbeir.queries import read_queries
from schemas.errors import ConfigError, InputError
from schemas.mbeir import DatasetTask, unhash_did
from schemas.training import EvaluationSettings, TrainConfig
from tests.support.cli import mbeir_cot
from trainer.evaluation.controls import teacher_traces
from trainer.evaluation.diagnostics import Diagnostics
from trainer.evaluation.evaluate import Evaluation
from trainer.evaluation.evaluate_run import evaluate_run
from trainer.retrieval.index import Index
from trainer.retrieval.index_builder import pool_paths


@pytest.mark.slow
def test_eval_writes_what_score_reads(finished: Path, tiny_world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    settings = ["--set", "evaluation.split=val", "--set", f"data.mbeir={tiny_world}"]
    measured = [
        "--set",
        "evaluation.swap_test=true",
        "--set",
        "evaluation.fallbacks=[0]",
        "--set",
        "evaluation.base_answers=true",
    ]
    done = mbeir_cot("eval", run, *settings, *measured, timeout=280)
    assert done.returncode == 0, done.stderr
    for said in ("base", "trace, routed by modality", "trace, routed at random", "mean composed", "think rate", "cirr_task7"):
        assert said in done.stdout
    results = json.loads((run / "eval" / "results_val.json").read_text())
    names = [
        "base",
        "base, answers first",
        "trace",
        "trace, routed by modality",
        "trace, routed at random",
        "trace, fallback below 0",
    ]
    assert [one["name"] for one in results] == names
    answered = [json.loads(line) for line in (run / "eval" / "queries_base-answers_val.jsonl").read_text().splitlines()]
    assert all(one["trace"] == one["trace"].strip() for one in answered)
    for task in results[1]["tasks"]:
        of_task = [one for one in answered if one["task"] == task["task"]]
        assert task["costs"]["reasoned"] == sum(bool(one["trace"]) for one in of_task) > 0
        assert task["costs"]["tokens"] > 0
    for task, fallen in zip(results[2]["tasks"], results[5]["tasks"], strict=True):
        assert (task["costs"]["fell_back"], fallen["costs"]["fell_back"]) == (0, task["costs"]["reasoned"])
    log = (run / "eval" / "eval.log").read_text()
    for logged in ("trace of", "on val queries", "parts to embed", "trace, routed at random: local mean", "results in"):
        assert logged in log
    by_modality = results[3]
    for task in by_modality["tasks"]:
        assert task["costs"]["reasoned"] == (task["costs"]["queries"] if task["task"][-1] in "678" else 0)
    table = run / "eval" / "retrieval_results" / "trace" / "final_tsv" / "eval_results_val.tsv"
    kept = table.read_bytes()
    scored = mbeir_cot("score", "--uniir-dir", run / "eval", "--mbeir-dir", tiny_world, "--suffix", "trace", "--split", "val")
    assert scored.returncode == 0, scored.stderr
    assert table.read_bytes() == kept

    diagnostics = Diagnostics.model_validate_json((run / "eval" / "diagnostics_val.json").read_bytes())
    own, without, *_ = diagnostics.swap_test
    assert sum(group.queries for group in diagnostics.by_confidence) == own.queries
    (few,) = diagnostics.by_confidence[:1]
    assert None not in (few.bypass_local, few.bypass_union)
    assert (own.trace, own.first_changed, without.trace, without.queries) == ("own", 0.0, "none", own.queries)
    assert own.queries == sum(task["costs"]["reasoned"] for task in results[2]["tasks"]) > 0
    assert own.cosine == pytest.approx(1, abs=1e-3)
    assert without.cosine < own.cosine
    assert "swap test" in done.stdout
    assert "by the trace's confidence" in done.stdout
    lines = (run / "eval" / "queries_trace_val.jsonl").read_text().splitlines()
    assert all((json.loads(line)["confidence"] is None) != json.loads(line)["reasoned"] for line in lines)

    with pytest.raises(InputError, match="was built on train, and val is evaluated"):
        teacher_traces(json.loads((run / "train.json").read_text())["data"]["dataset"], "val")

    # Ray actors write the same files
    pool = run / "eval" / "embed" / "base" / "cand_pool" / "mbeir_cirr_task7_cand_pool_embed.npy"
    one = pool.read_bytes()
    shutil.rmtree(run / "eval" / "embed")
    again = mbeir_cot("eval", run, *settings, "--set", "evaluation.workers=2", "--set", "variants=[]", timeout=280)
    assert again.returncode == 0, again.stderr
    assert not (run / "eval" / "diagnostics_val.json").exists()  # it explained the table before
    assert "swap test" not in again.stdout
    assert np.abs(np.load(pool).astype(float) - np.load(io.BytesIO(one)).astype(float)).max() < 2e-3


@pytest.mark.slow
def test_a_corpus_is_indexed_and_searched(finished: Path, tiny_world: Path, tmp_path: Path) -> None:
    where = tmp_path / "index"
    made = mbeir_cot(
        "index", finished, "--out", where, "--split", "val", "--pool", "webqa_task1", "--pool", "cirr_task7",
        "--approximate", "HNSW16", "--small", "int8", "--dims", "64", "--set", f"data.mbeir={tiny_world}", timeout=280,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    recall = float(re.search(r"recall@10 against exact search (\d\.\d+)", made.stdout)[1])  # type: ignore[index]
    assert 0.5 < recall <= 1  # an almost untrained model's vectors are close together
    assert "finished" in (where / "index.log").read_text()
    index = Index.open(where)
    assert index.metadata.approximate == "HNSW16"
    row = re.search(r"int8 +│ +64 +│ +64 +│ +(\d\.\d+) +│ +(\d\.\d+)", made.stdout)
    assert row is not None, made.stdout
    assert 0 < float(row[1]) <= float(row[2]) <= 1
    index.make_small("int8")
    assert Index.open(where).measure_small(index.vectors[::50], 10).rescored > 0.95
    index.make_approximate("Flat")
    assert index.measure_recall(index.vectors[::50], 10) > 0.99
    with pytest.raises(ConfigError, match="--approximate Nonsense9"):
        index.make_approximate("Nonsense9")
    layout = Layout.open(tiny_world)
    expected = [did for path in pool_paths(layout, "val", ["webqa_task1", "cirr_task7"]) for did in dids_of(path)]
    assert [unhash_did(int(i)) for i in index.ids] == expected
    picture = next(path for path in (tiny_world / "mbeir_images").rglob("*.jpg"))
    found = mbeir_cot("search", where, "is red", "--image", picture, "-k", "3", "--route", "always-reason")
    assert found.returncode == 0, found.stderr
    assert re.search(r"reasons, with confidence -[\d.]+ \(P\(direct\) [\d.]+, ", found.stdout)
    assert len([line for line in found.stdout.splitlines() if str(tiny_world) in line or "8:" in line or "2:" in line]) >= 3
    search_command(where, "a town in the north", approximate=True)
    search_command(where, "a town in the north", small=True)
    search_command(where, "a town in the north", dims=64)

    with pytest.raises(ConfigError, match="holds something else"):
        index_command(finished, where, split="val", pool=["edis_task2"], overrides=[f"data.mbeir={tiny_world}"])
    with pytest.raises(InputError, match="queries have 7 dimensions, the index 256"):
        index.search(np.ones((1, 7)), 3)
    with pytest.raises(ConfigError, match="has no effect without --small"):
        index_command(finished, where, dims=64)
    with pytest.raises(ConfigError, match="without --approximate"):
        index.search(index.vectors[:1], 3, dims=64, small=True)
    with pytest.raises(ConfigError, match="nothing to search for"):
        search_command(where)
    with pytest.raises(InputError, match="is no index"):
        search_command(tmp_path, "x")


def test_eval_refuses_a_run_that_is_not_finished(train_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing or not finished") as caught:
        evaluate(train_file, tmp_path / "none", ["evaluation.base=false"])
    assert "mbeir-cot train" in caught.value.remedy


def test_an_evaluations_log_has_the_error_that_ended_it(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        evaluate_run(config.model_copy(update={"out": tmp_path, "evaluation": EvaluationSettings(base=False)}))
    log = (tmp_path / "eval" / "eval.log").read_text()
    assert "ERROR" in log
    assert "missing or not finished" in log
    assert "Traceback" not in log  # its cause is known


def test_vectors_of_other_weights_are_recomputed(config: TrainConfig, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    model = run / "trace" / "model"
    evaluation = Evaluation(config, model, run / "eval")
    vectors = run / "eval" / "embed" / "trace" / "cand_pool" / "x_embed.npy"
    for changed in (False, False, True):
        if changed:
            identity = json.loads((model / "embedder.json").read_text())
            (model / "embedder.json").write_text(json.dumps(identity | {"temperature": 0.07}))
        evaluation.remove_stale_vectors("trace", {"cirr_task7": "digest"})
        assert vectors.exists() == (vectors.parent.exists() and not changed)
        vectors.parent.mkdir(parents=True, exist_ok=True)
        vectors.touch()
    evaluation.remove_stale_vectors("trace", {"cirr_task7": "another pool"})
    assert not vectors.exists()


def test_queries_without_a_positive_in_the_pool_are_noticed(config: TrainConfig, tiny_world: Path, tmp_path: Path) -> None:
    mbeir = tmp_path / "M-BEIR"
    shutil.copytree(tiny_world, mbeir)
    layout, task = Layout.open(mbeir), DatasetTask("cirr", 7)
    path = layout.local_pool(task, "val")
    assert path is not None
    whole = path.read_text().splitlines()
    wanted = [query.pos_cand_list for _, query in read_queries(layout.queries("val", task))]
    data = config.data.model_copy(update={"mbeir": mbeir})
    settings = config.model_copy(update={"data": data, "evaluation": EvaluationSettings(split="val")})

    def notices(lost: set[str]) -> list[str]:
        path.write_text("\n".join(line for line in whole if json.loads(line)["did"] not in lost) + "\n")
        evaluation = Evaluation(settings, None, tmp_path / "eval")
        with CandidatePool.open(path, config.data.candidate_cache) as pool:
            evaluation.check_positives(task, pool)
        return evaluation.notices

    assert notices(set()) == []
    (notice,) = notices(set(wanted[0]))
    assert "the pool holds no positive of" in notice
    assert "which count as misses" in notice
    with pytest.raises(InputError, match="holds no positive of any of the 12 queries of cirr_task7"):
        notices({did for dids in wanted for did in dids})


def dids_of(path: Path) -> list[str]:
    return [json.loads(line)["did"] for line in path.read_text().splitlines()]
