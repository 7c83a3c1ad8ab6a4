"""Training with the real command: exact resumption, variants, self-generated traces, errors."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import load_config
from schemas.errors import InputError
from schemas.training import TrainConfig
from tests.support.builds import start
from tests.support.cli import mbeir_cot
from tests.support.hub import serve
from tests.trainer.conftest import fresh, rows, source_of, write_dataset
from trainer.data.dataset import Candidates, Records
from trainer.data.process_group import ProcessGroup
from trainer.embedding.transformers_engine import AdaptiveSettings
from trainer.model.embedder import Embedder
from trainer.training import checkpoint
from trainer.training.self_traces import generate_traces
from trainer.training.step import DivergedError
from trainer.training.train import train


def metrics(run: Path, variant: str = "trace") -> list[dict[str, Any]]:
    """A run's metrics without its timings."""
    lines = [json.loads(line) for line in (run / variant / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "queries_per_s"} for line in lines]


def with_settings(train_file: Path, *overrides: str) -> TrainConfig:
    return load_config(train_file, TrainConfig, overrides)


@pytest.mark.slow
def test_a_killed_training_resumes_with_the_same_losses(train_file: Path, finished: Path, tmp_path: Path) -> None:
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
    assert len(checkpoint.list_checkpoints(run / "trace" / "checkpoints")) == 2


@pytest.mark.slow
def test_workers_do_not_change_the_losses(train_file: Path, finished: Path, tmp_path: Path) -> None:
    done = mbeir_cot(
        "train", train_file, "--out", tmp_path / "run", "--set", "data.workers=2", "--set", "optimiser.max_steps=6", timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert [line["total"] for line in metrics(tmp_path / "run")] == [line["total"] for line in metrics(finished)]


@pytest.mark.slow
def test_a_finished_run_is_kept_and_other_settings_are_refused(train_file: Path, finished: Path) -> None:
    before = (finished / "trace" / "model" / "adapter_model.safetensors").stat().st_mtime_ns
    again = mbeir_cot("train", train_file, "--out", finished)
    assert again.returncode == 0, again.stderr
    assert (finished / "trace" / "model" / "adapter_model.safetensors").stat().st_mtime_ns == before
    other = mbeir_cot("train", train_file, "--out", finished, "--set", "optimiser.lr=0.1", "--set", "seed=7")
    assert other.returncode != 0
    assert "other settings or data: optimiser.lr was 0.001, is 0.1, seed was 0, is 7" in " ".join(other.stderr.split())
    assert json.loads((finished / "train.json").read_text())["seed"] == 0  # refused settings are not written


@pytest.mark.slow
def test_controls_train_on_the_same_queries(train_file: Path, tmp_path: Path) -> None:
    config = with_settings(train_file, f"out={tmp_path}", "optimiser.max_steps=2")
    for variant in ("direct", "always-reason", "trace"):
        train(config, variant)
    direct, always, trace = (metrics(tmp_path, variant) for variant in ("direct", "always-reason", "trace"))
    assert [line["reasoning"] for line in direct] == [0, 0]
    assert (
        [line["reasoning"] for line in always] == [line["reasoning"] for line in trace] != [0, 0]
    )  # here both use one dataset
    assert direct[0]["generation"] != trace[0]["generation"]  # labels are one token, not a trace
    assert direct[0]["lr"] == trace[0]["lr"]


@pytest.mark.slow
def test_token_rows_have_their_own_learning_rate(train_file: Path, tmp_path: Path) -> None:
    """Adam's first step changes every entry by the learning rate times the factor."""

    def rows(factor: float) -> torch.Tensor:
        out = f"out={tmp_path / str(factor)}"
        config = with_settings(
            train_file, out, "optimiser.max_steps=1", "optimiser.lr=0.001", f"optimiser.token_lr_multiplier={factor}"
        )
        embedder = Embedder.load(train(config, "trace"), config.model)
        return next(p for name, p in embedder.named_parameters() if "trainable_tokens" in name).detach()

    assert float((rows(0.3) - rows(0.1)).abs().max()) == pytest.approx(2e-4, rel=0.02)


@pytest.mark.slow
def test_a_dataset_may_be_on_the_hub(train_file: Path, dataset: Path, tmp_path: Path) -> None:
    with serve(dataset, "org/pocket-cot") as hub:
        elsewhere = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}

        def run(name: str) -> subprocess.CompletedProcess[str]:
            changed = ("--set", f"data.dataset=org/{name}", "--set", "optimiser.max_steps=1")
            return mbeir_cot("train", train_file, "--out", tmp_path / name, *changed, timeout=200, **elsewhere)

        done = run("pocket-cot")
        assert done.returncode == 0, done.stderr
        learnt = json.loads((tmp_path / "pocket-cot" / "trace" / "run.json").read_text())
        assert learnt["dataset_sha256"] == Records.load(str(dataset)).digest
        unknown = run("other")
    assert unknown.returncode != 0
    assert "org/other is no directory and cannot be downloaded" in " ".join(unknown.stderr.split())


def test_the_contrastive_pass_follows_the_students_own_traces(train_file: Path, tmp_path: Path) -> None:
    config = with_settings(train_file, "traces.contrastive=own", "batch.micro_batch_size=64")
    embedder = fresh(config)
    source = source_of(config, embedder)
    source.own = dict.fromkeys(list(source.traces)[::2], "Answer: mine")
    chunks = [chunk for step in range(4) for chunk in source.make_batch(step).queries]
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
    source.own = dict(source.traces)  # with the student's traces equal to the teacher's, one row serves both losses
    chunks = [chunk for step in range(4) for chunk in source.make_batch(step).queries]
    names = [name for chunk in chunks for name in chunk.names]
    assert len(names) == len(set(names)) == 4 * config.batch.global_batch_size
    assert all((chunk.labels != -100).any(1).all() and (chunk.places >= 0).all() for chunk in chunks)


def test_the_student_generates_traces_for_training(train_file: Path) -> None:
    config = with_settings(train_file)
    embedder = fresh(config)
    source = source_of(config, embedder)
    every = source.list_reasoning(0, 200 * source.sampler.per_epoch)
    assert {source.records.item(i).id for i in every} == source.traces.keys()
    wanted = source.list_reasoning(1, 3)  # only what two steps draw
    drawn = {identifier for step in (1, 2) for identifier in source.make_batch(step).ids}
    assert {source.records.item(i).id for i in wanted} == drawn & source.traces.keys()
    assert 0 < len(wanted) < len(every)
    found = generate_traces(embedder, source, wanted, AdaptiveSettings(max_new_tokens=4), ProcessGroup.join("cpu"))
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
    assert checkpoint.find_latest(tmp_path) == place


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "too many open files"),
        (RuntimeError("I/O error: Input/output error (os error 5)"), "connection fails"),
        (OSError(errno.ESTALE, "Stale file handle"), "lost the file"),
        (MemoryError(), "no memory left"),
    ],
)
def test_a_checkpoint_that_the_system_refuses_is_not_to_be_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, said: str
) -> None:
    def refuse(path: Path) -> None:
        raise error

    (tmp_path / "state.json").write_text("{}")
    monkeypatch.setattr(checkpoint, "load_file", refuse)
    with pytest.raises(InputError, match=said) as caught:
        checkpoint.restore(tmp_path, None, None)  # type: ignore[arg-type]
    assert "remove" not in caught.value.remedy


def test_datasets_without_what_a_variant_needs_are_refused(train_file: Path, small_world: Path, tmp_path: Path) -> None:
    records = list(rows(small_world, each=2))
    plain = [record | {"route": "bypass", "target": "<|emb|>", "answer": None} for record in records]
    bare = write_dataset(tmp_path / "bare", plain)
    config = with_settings(train_file, f"data.dataset={bare}", f"out={tmp_path / 'run'}")
    with pytest.raises(InputError, match="no record with a trace"):
        train(config, "trace")
    stray = write_dataset(tmp_path / "stray", [records[0] | {"positives": ["9:9999999"]}])
    loaded = Records.load(str(stray))
    candidates = Candidates(small_world, loaded.split, config.data.candidate_cache)
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


def test_an_unknown_key_is_named(train_file: Path) -> None:
    done = mbeir_cot("train", train_file, "--set", "optimiser.learning_rate=1")
    assert done.returncode != 0
    assert "optimiser.learning_rate" in done.stderr


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_from_any_process(
    train_file: Path, small_world: Path, tmp_path: Path, workers: int
) -> None:
    records = [record | {"query_image": "mbeir_images/nowhere.jpg"} for record in rows(small_world) if record["query_image"]]
    lost = write_dataset(tmp_path / "lost", records)
    config = with_settings(train_file, f"data.dataset={lost}", f"out={tmp_path / 'run'}", f"data.workers={workers}")
    with pytest.raises(InputError, match="mbeir_images/nowhere.jpg") as caught:
        train(config, "direct")
    assert "Traceback" not in str(caught.value)


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_changes_no_weight(
    train_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_settings(train_file, f"out={tmp_path}", "checkpoint.save_every=1")

    def clip(parameters: Any, limit: float) -> torch.Tensor:
        taken = list(parameters)
        return torch.tensor(
            float("nan") if len(checkpoint.list_checkpoints(tmp_path / "direct" / "checkpoints")) else 1.0
        ) * len(taken)

    monkeypatch.setattr("trainer.training.train.nn.utils.clip_grad_norm_", clip)
    with pytest.raises(DivergedError, match="step 1: the gradient is not finite"):
        train(config, "direct")
    assert [place.name for place in checkpoint.list_checkpoints(tmp_path / "direct" / "checkpoints")] == ["step-00000001"]
    log = (tmp_path / "train.log").read_text()
    for wanted in ("INFO .*direct: steps 0 to ", "INFO .*step 1: checkpoint .*step-00000001", "ERROR .*DivergedError.*step 1"):
        assert re.search(wanted, log), wanted
