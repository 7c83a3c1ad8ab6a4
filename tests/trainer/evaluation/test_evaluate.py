"""Evaluation, index and search by the real commands: tables that the files bear out, vectors that are never stale."""

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
from trainer.retrieval.index import Index, pools_of


@pytest.mark.slow
def test_eval_writes_what_score_reads(finished: Path, tiny_world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    settings = ["--set", "evaluation.split=val", "--set", f"data.mbeir={tiny_world}"]
    done = mbeir_cot("eval", run, *settings, "--set", "evaluation.swap_test=true", timeout=280)
    assert done.returncode == 0, done.stderr
    for said in ("base", "trace, routed by modality", "trace, routed at random", "mean composed", "think rate", "cirr_task7"):
        assert said in done.stdout
    results = json.loads((run / "eval" / "results_val.json").read_text())
    assert [one["name"] for one in results] == ["base", "trace", "trace, routed by modality", "trace, routed at random"]
    by_modality = results[2]
    for task in by_modality["tasks"]:
        assert task["costs"]["reasoned"] == (task["costs"]["queries"] if task["task"][-1] in "678" else 0)
    table = run / "eval" / "retrieval_results" / "trace" / "final_tsv" / "eval_results_val.tsv"
    kept = table.read_bytes()
    scored = mbeir_cot("score", "--uniir-dir", run / "eval", "--mbeir-dir", tiny_world, "--suffix", "trace", "--split", "val")
    assert scored.returncode == 0, scored.stderr
    assert table.read_bytes() == kept

    own, without, *_ = Diagnostics.model_validate_json((run / "eval" / "diagnostics_val.json").read_bytes()).swap_test
    assert (own.trace, own.first_changed, without.trace, without.queries) == ("own", 0.0, "none", own.queries)
    assert own.queries == sum(task["costs"]["reasoned"] for task in results[1]["tasks"]) > 0
    assert own.cosine == pytest.approx(1, abs=1e-3)
    assert without.cosine < own.cosine
    assert "swap test" in done.stdout

    with pytest.raises(InputError, match="was built on train, and val is evaluated"):
        teacher_traces(json.loads((run / "train.json").read_text())["data"]["dataset"], "val")

    # pools embedded by Ray actors are the same files
    pool = run / "eval" / "embed" / "base" / "cand_pool" / "mbeir_cirr_task7_cand_pool_embed.npy"
    one = pool.read_bytes()
    shutil.rmtree(run / "eval")
    again = mbeir_cot("eval", run, *settings, "--set", "evaluation.workers=2", "--set", "variants=[]", timeout=280)
    assert again.returncode == 0, again.stderr
    assert np.abs(np.load(pool).astype(float) - np.load(io.BytesIO(one)).astype(float)).max() < 2e-3


@pytest.mark.slow
def test_a_corpus_is_indexed_and_searched(finished: Path, tiny_world: Path, tmp_path: Path) -> None:
    where = tmp_path / "index"
    made = mbeir_cot(
        "index", finished, "--out", where, "--split", "val", "--pool", "webqa_task1", "--pool", "cirr_task7",
        "--approximate", "HNSW16", "--set", f"data.mbeir={tiny_world}", timeout=280,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    recall = float(re.search(r"recall@10 against exact search (\d\.\d+)", made.stdout)[1])  # type: ignore[index]
    assert 0.5 < recall <= 1  # vectors of a hardly trained model lie close together
    index = Index.open(where)
    assert index.card.approximate == "HNSW16"
    index.make_approximate("Flat")
    assert index.recall(index.vectors[::50], 10) > 0.99
    with pytest.raises(ConfigError, match="--approximate Nonsense9"):
        index.make_approximate("Nonsense9")
    layout = Layout.open(tiny_world)
    expected = [did for path in pools_of(layout, "val", ["webqa_task1", "cirr_task7"]) for did in dids_of(path)]
    assert [unhash_did(int(i)) for i in index.ids] == expected
    picture = next(path for path in (tiny_world / "mbeir_images").rglob("*.jpg"))
    found = mbeir_cot("search", where, "is red", "--image", picture, "-k", "3", "--route", "always-reason")
    assert found.returncode == 0, found.stderr
    assert "reasons (P(direct)" in found.stdout
    assert len([line for line in found.stdout.splitlines() if str(tiny_world) in line or "8:" in line or "2:" in line]) >= 3
    search_command(where, "a town in the north", approximate=True)

    with pytest.raises(ConfigError, match="holds something else"):
        index_command(finished, where, split="val", pool=["edis_task2"], overrides=[f"data.mbeir={tiny_world}"])
    with pytest.raises(InputError, match="queries have 7 dimensions, the index 256"):
        index.search(np.ones((1, 7)), 3)
    with pytest.raises(ConfigError, match="nothing to search for"):
        search_command(where)
    with pytest.raises(InputError, match="is no index"):
        search_command(tmp_path, "x")


def test_eval_of_a_run_that_is_not_finished(train_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not there or not finished") as caught:
        evaluate(train_file, tmp_path / "none", ["evaluation.base=false"])
    assert "mbeir-cot train" in caught.value.remedy


def test_vectors_of_other_weights_are_made_anew(config: TrainConfig, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    model = run / "trace" / "model"
    evaluation = Evaluation(config, model, run / "eval", quiet=True)
    vectors = run / "eval" / "embed" / "trace" / "cand_pool" / "x_embed.npy"
    for changed in (False, False, True):
        if changed:
            identity = json.loads((model / "embedder.json").read_text())
            (model / "embedder.json").write_text(json.dumps(identity | {"temperature": 0.07}))
        evaluation._claim("trace", {"cirr_task7": "digest"})
        assert vectors.exists() == (vectors.parent.exists() and not changed)
        vectors.parent.mkdir(parents=True, exist_ok=True)
        vectors.touch()
    evaluation._claim("trace", {"cirr_task7": "another pool"})
    assert not vectors.exists()


def test_pools_without_positives_are_noticed(config: TrainConfig, tiny_world: Path, tmp_path: Path) -> None:
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
        evaluation = Evaluation(settings, None, tmp_path / "eval", quiet=True)
        with CandidatePool.open(path, config.data.candidate_cache) as pool:
            evaluation._look_for_positives(task, pool)
        return evaluation.notices

    assert notices(set()) == []
    (notice,) = notices(set(wanted[0]))
    assert "the pool holds no positive of" in notice
    assert "which count as misses" in notice
    with pytest.raises(InputError, match="holds no positive of any of the 12 queries of cirr_task7"):
        notices({did for dids in wanted for did in dids})


def dids_of(path: Path) -> list[str]:
    return [json.loads(line)["did"] for line in path.read_text().splitlines()]
