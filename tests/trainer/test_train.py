"""Training and evaluation by the real commands: exact resumption, refusals, tables that the files bear out."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import load_config
from pipeline.mbeir.images import ImageStore
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.pools import CandidatePool
from pipeline.mbeir.queries import read_queries
from schemas.errors import ConfigError, InputError
from schemas.mbeir import DatasetTask, unhash_did
from schemas.training import EvaluationSettings, TrainConfig
from tests.builds import start
from tests.cli import mbeir_cot
from tests.trainer.conftest import fresh, rows, source_of, write_dataset
from trainer import checkpoint
from trainer.adaptive import AdaptiveSettings
from trainer.dataset import Candidates, Records
from trainer.embed import QueryFile
from trainer.evaluate import Evaluation, teacher_traces
from trainer.index import Index, pools_of
from trainer.step import DivergedError
from trainer.student_traces import written_by
from trainer.train import train
from trainer.world import World


def metrics(run: Path, variant: str = "trace") -> list[dict[str, Any]]:
    """What a run logged, without the clock."""
    lines = [json.loads(line) for line in (run / variant / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "queries_per_s"} for line in lines]


def with_settings(train_file: Path, *overrides: str) -> TrainConfig:
    return load_config(train_file, TrainConfig, overrides)


@pytest.fixture(scope="module")
def finished(train_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    run = tmp_path_factory.mktemp("finished") / "run"
    done = mbeir_cot("train", train_file, "--out", run, timeout=200)
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.slow
def test_a_killed_training_goes_on_as_if_it_had_not_been(train_file: Path, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    log = run / "trace" / "metrics.jsonl"
    process = start("train", str(train_file), "--out", str(run))
    for _ in range(1200):
        if log.is_file() and log.read_text().count("\n") >= 3:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    reached = log.read_text().count("\n")
    assert reached >= 3
    assert not (run / "trace" / "model").exists()
    with log.open("a") as file:
        file.write('{"step": 99, "torn')
    again = mbeir_cot("train", train_file, "--out", run, timeout=200)
    assert again.returncode == 0, again.stderr
    assert metrics(run) == metrics(finished)
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5, 6]
    one, other = ((r / "trace" / "model" / "adapter_model.safetensors").read_bytes() for r in (run, finished))
    assert one == other
    assert len(checkpoint.steps(run / "trace" / "checkpoints")) == 2


@pytest.mark.slow
def test_workers_do_not_change_the_losses(train_file: Path, finished: Path, tmp_path: Path) -> None:
    done = mbeir_cot(
        "train", train_file, "--out", tmp_path / "run", "--set", "data.workers=2", "--set", "optimiser.steps=6", timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert [line["total"] for line in metrics(tmp_path / "run")] == [line["total"] for line in metrics(finished)]


@pytest.mark.slow
def test_a_finished_run_is_left_alone_and_another_one_refused(train_file: Path, finished: Path) -> None:
    before = (finished / "trace" / "model" / "adapter_model.safetensors").stat().st_mtime_ns
    again = mbeir_cot("train", train_file, "--out", finished)
    assert again.returncode == 0, again.stderr
    assert (finished / "trace" / "model" / "adapter_model.safetensors").stat().st_mtime_ns == before
    other = mbeir_cot("train", train_file, "--out", finished, "--set", "optimiser.lr=0.1", "--set", "seed=7")
    assert other.returncode != 0
    assert "other settings or data: optimiser.lr was 0.001, is 0.1, seed was 0, is 7" in " ".join(other.stderr.split())
    assert json.loads((finished / "train.json").read_text())["seed"] == 0  # what was refused is not what the run is


@pytest.mark.slow
def test_eval_writes_what_score_reads(finished: Path, tiny_world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    settings = ["--set", "evaluation.split=val", "--set", f"data.mbeir={tiny_world}"]
    done = mbeir_cot("eval", run, *settings, timeout=280)
    assert done.returncode == 0, done.stderr
    for said in ("base", "trace, routed by modality", "trace, routed by lot", "mean composed", "think rate", "cirr_task7"):
        assert said in done.stdout
    results = json.loads((run / "eval" / "results_val.json").read_text())
    assert [one["name"] for one in results] == ["base", "trace", "trace, routed by modality", "trace, routed by lot"]
    by_modality = results[2]
    for task in by_modality["tasks"]:
        assert task["costs"]["reasoned"] == (task["costs"]["queries"] if task["task"][-1] in "678" else 0)
    table = run / "eval" / "retrieval_results" / "trace" / "final_tsv" / "eval_results_val.tsv"
    kept = table.read_bytes()
    scored = mbeir_cot("score", "--uniir-dir", run / "eval", "--mbeir-dir", tiny_world, "--suffix", "trace", "--split", "val")
    assert scored.returncode == 0, scored.stderr
    assert table.read_bytes() == kept

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
    near = mbeir_cot("search", where, "a town in the north", "--approximate")
    assert near.returncode == 0, near.stderr

    again = mbeir_cot(
        "index", finished, "--out", where, "--split", "val", "--pool", "edis_task2", "--set", f"data.mbeir={tiny_world}"
    )
    assert "holds something else" in again.stderr
    with pytest.raises(InputError, match="queries have 7 dimensions, the index 256"):
        index.search(np.ones((1, 7)), 3)
    empty = mbeir_cot("search", where)
    assert "nothing to search for" in empty.stderr
    assert "is no index" in mbeir_cot("search", tmp_path, "x").stderr


def dids_of(path: Path) -> list[str]:
    return [json.loads(line)["did"] for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_controls_learn_from_the_same_queries(train_file: Path, tmp_path: Path) -> None:
    config = with_settings(train_file, f"out={tmp_path}", "optimiser.steps=2")
    for variant in ("direct", "always-reason", "trace"):
        train(config, variant, quiet=True)
    direct, always, trace = (metrics(tmp_path, variant) for variant in ("direct", "always-reason", "trace"))
    assert [line["reasoning"] for line in direct] == [0, 0]
    assert (
        [line["reasoning"] for line in always] == [line["reasoning"] for line in trace] != [0, 0]
    )  # both from one dataset here
    assert direct[0]["generation"] != trace[0]["generation"]  # one token to learn, not a trace
    assert direct[0]["lr"] == trace[0]["lr"]


def test_own_traces_take_the_contrastive_pass(train_file: Path, tmp_path: Path) -> None:
    config = with_settings(train_file, "traces.contrastive=own", "batch.chunk=64")
    embedder = fresh(config)
    source = source_of(config, embedder)
    source.own = dict.fromkeys(list(source.traces)[::2], "Answer: mine")
    chunks = [chunk for step in range(4) for chunk in source.batch(step).queries]
    tokenizer = embedder.processor.tokenizer
    both = 0
    for chunk in chunks:
        texts = [tokenizer.decode(ids) for ids in chunk.inputs["input_ids"]]
        for name in {name for name in chunk.names if chunk.names.count(name) == 2}:
            first, second = (i for i, other in enumerate(chunk.names) if other == name)
            mine, teachers = (first, second) if "Answer: mine" in texts[first] else (second, first)
            both += 1
            assert int(chunk.places[mine]) >= 0
            assert not (chunk.labels[mine] != -100).any()
            assert int(chunk.places[teachers]) == -1
            assert (chunk.labels[teachers] != -100).any()
    assert both


def test_the_student_writes_its_own_traces_for_training(train_file: Path) -> None:
    config = with_settings(train_file)
    embedder = fresh(config)
    source = source_of(config, embedder)
    every = source.reasoning(0, 200 * source.order.per_epoch)
    assert {source.records.item(i).id for i in every} == source.traces.keys()
    wanted = source.reasoning(1, 3)  # what two steps draw, no more
    drawn = {identifier for step in (1, 2) for identifier in source.batch(step).ids}
    assert {source.records.item(i).id for i in wanted} == drawn & source.traces.keys()
    assert 0 < len(wanted) < len(every)
    found = written_by(embedder, source, wanted, AdaptiveSettings(max_new_tokens=4), World.join("cpu"))
    assert found.keys() <= {source.records.item(i).id for i in wanted}
    assert embedder.training


def test_a_checkpoint_restores_optimiser_and_random_state(config: TrainConfig, tmp_path: Path) -> None:
    embedder = fresh(config)
    parameters = [p for p in embedder.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimiser.step()
    place = checkpoint.save(tmp_path, 3, embedder, optimiser, 2, own={"a": "b"})
    drawn = torch.randn(4)
    other = fresh(config)
    restored = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], lr=1e-3)
    assert checkpoint.restore(place, other, restored) == (3, {"a": "b"})
    assert torch.equal(torch.randn(4), drawn)
    for mine, theirs in zip(parameters, [p for p in other.parameters() if p.requires_grad], strict=True):
        assert torch.equal(mine, theirs)
        assert torch.equal(optimiser.state[mine]["exp_avg_sq"], restored.state[theirs]["exp_avg_sq"])
    (place / "state.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="step-00000003 cannot be read"):
        checkpoint.restore(place, other, restored)
    half = tmp_path / "step-00000009"
    half.mkdir()
    assert checkpoint.latest(tmp_path) == place


def test_datasets_that_cannot_be_learnt_from(train_file: Path, small_world: Path, tmp_path: Path) -> None:
    records = list(rows(small_world, each=2))
    plain = [record | {"route": "bypass", "target": "<|emb|>", "answer": None} for record in records]
    bare = write_dataset(tmp_path / "bare", plain)
    config = with_settings(train_file, f"data.dataset={bare}", f"out={tmp_path / 'run'}")
    with pytest.raises(InputError, match="no record with a trace"):
        train(config, "trace", quiet=True)
    stray = write_dataset(tmp_path / "stray", [records[0] | {"positives": ["9:9999999"]}])
    loaded = Records.load(str(stray))
    candidates = Candidates(small_world, loaded.split, config.data.cache)
    with pytest.raises(InputError, match="does not hold 9:9999999"):
        candidates.fetch(loaded.item(0).positives)
    broken = write_dataset(tmp_path / "broken", [records[0] | {"target": "no end"}])
    with pytest.raises(InputError, match="targets that do not end in"):
        Records.load(str(broken))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no data/\*\.parquet"):
        Records.load(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="no dataset at"):
        Records.load(str(tmp_path / "nowhere"))


def test_eval_of_a_run_that_is_not_finished(train_file: Path, tmp_path: Path) -> None:
    done = mbeir_cot("eval", train_file, "--out", tmp_path / "none", "--set", "evaluation.base=false")
    assert done.returncode != 0
    assert "not there or not finished" in done.stderr
    assert "mbeir-cot train" in done.stderr


def test_a_wrong_key_is_named(train_file: Path) -> None:
    done = mbeir_cot("train", train_file, "--set", "optimiser.learning_rate=1")
    assert done.returncode != 0
    assert "optimiser.learning_rate" in done.stderr


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


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_from_any_process(
    train_file: Path, small_world: Path, tmp_path: Path, workers: int
) -> None:
    records = [record | {"query_image": "mbeir_images/nowhere.jpg"} for record in rows(small_world) if record["query_image"]]
    lost = write_dataset(tmp_path / "lost", records)
    config = with_settings(train_file, f"data.dataset={lost}", f"out={tmp_path / 'run'}", f"data.workers={workers}")
    with pytest.raises(InputError, match="mbeir_images/nowhere.jpg") as caught:
        train(config, "direct", quiet=True)
    assert "Traceback" not in str(caught.value)


def test_a_gradient_that_is_no_number_changes_no_weight(
    train_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_settings(train_file, f"out={tmp_path}", "checkpoint.every=1")

    def clip(parameters: Any, limit: float) -> torch.Tensor:
        taken = list(parameters)
        return torch.tensor(float("nan") if len(checkpoint.steps(tmp_path / "direct" / "checkpoints")) else 1.0) * len(taken)

    monkeypatch.setattr("trainer.train.nn.utils.clip_grad_norm_", clip)
    with pytest.raises(DivergedError, match="step 1: the gradient is no finite number"):
        train(config, "direct", quiet=True)
    assert [place.name for place in checkpoint.steps(tmp_path / "direct" / "checkpoints")] == ["step-00000001"]


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
        with CandidatePool.open(path, config.data.cache) as pool:
            evaluation._look_for_positives(task, pool)
        return evaluation.notices

    assert notices(set()) == []
    (notice,) = notices(set(wanted[0]))
    assert "the pool holds no positive of" in notice
    assert "which count as misses" in notice
    with pytest.raises(InputError, match="holds no positive of any of the 12 queries of cirr_task7"):
        notices({did for dids in wanted for did in dids})


def test_a_query_file_is_read_in_windows(config: TrainConfig, tiny_world: Path) -> None:
    encoder, images = fresh(config).encoder(), ImageStore(tiny_world)
    file = QueryFile(Layout.open(tiny_world), DatasetTask("cirr", 7), "val")
    whole = file.rows(encoder, images)
    parts = list(file.windows(encoder, images, 5))
    assert [start for start, _ in parts] == [0, 5, 10]
    assert [row for _, rows in parts for row in rows] == whole
