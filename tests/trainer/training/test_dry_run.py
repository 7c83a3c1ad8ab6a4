"""`train --dry-run`: the plan of a training, without weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, Qwen2_5_VLConfig

from pocket.training.train_models import MODELS
from schemas.errors import CotError
from schemas.training import LoraSettings, ModelSettings, TrainConfig
from tests.support.cli import mbeir_cot
from tests.trainer.conftest import fresh, source_of
from trainer.data.micro_batch import IGNORE
from trainer.training.dry_run import make_plan
from trainer.training.train import train


def test_it_counts_the_tokens_of_a_training(config: TrainConfig) -> None:
    chosen = config.model_copy(update={"variants": ("trace", "direct")})
    found = make_plan(chosen, 2, mfu=0.5, peak=1e12)
    embedder = fresh(chosen)
    assert found.parameters == sum(p.numel() for p in embedder.parameters())
    trained = [p for name, p in embedder.named_parameters() if p.requires_grad and name != "log_scale"]
    assert found.trained == sum(p.numel() for p in trained)
    assert found.step_rows == 16
    trace, direct = found.runs
    source = source_of(chosen, embedder)
    rows = source.encoder.make_chunks(source.sample(64), 64, 1 << 20)
    assert trace.tokens * len(source.records) == pytest.approx(sum(int(c.inputs["attention_mask"].sum()) for c in rows))
    learnt = sum(int((chunk.labels != IGNORE).sum()) for chunk in rows)
    assert 0 < (trace.tokens - direct.tokens) * len(source.records) < learnt
    assert (trace.steps, trace.queries, trace.counted) == (6, len(source.records), "data")
    language = sum(p.numel() for n, p in embedder.named_parameters() if "language_model" in n and "embed_tokens" not in n)
    vision = sum(p.numel() for n, p in embedder.named_parameters() if ".visual." in n)
    work = 4 * language * 8 * trace.tokens + 2 * vision * 8 * trace.patches
    assert trace.step_s == pytest.approx(work / (2 * 1e12 * 0.5))
    assert found.hours == pytest.approx(6 * (trace.step_s + direct.step_s) / 3600)


@pytest.mark.slow
def test_a_plan_for_seven_billion_parameters_needs_no_weights(config: TrainConfig, tmp_path: Path) -> None:
    """The published shape, with no file of weights."""
    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4,
            "num_hidden_layers": 28, "vocab_size": 152064, "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}}  # fmt: skip
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False).save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(MODELS / "base").save_pretrained(tmp_path)
    model = ModelSettings(base=str(tmp_path), lora=LoraSettings(), dtype="bfloat16", autocast=True, train_projector=True)
    data = config.data.model_copy(update={"dataset": str(tmp_path / "none")})
    batch = config.batch.model_copy(update={"global_batch_size": 1024, "micro_batch_size": 16})
    optimiser = config.optimiser.model_copy(update={"max_steps": None})
    chosen = config.model_copy(update={"model": model, "data": data, "batch": batch, "optimiser": optimiser})
    found = make_plan(chosen, 8, published=True)
    assert found.parameters == pytest.approx(8.66e9, rel=0.01)
    assert found.trained == pytest.approx(0.37e9, rel=0.02)
    assert found.memory == pytest.approx(70e9, rel=0.1)
    assert (found.runs[0].steps, found.runs[0].counted) == (1068, "published")
    assert found.hours == pytest.approx(2.85, rel=0.05)
    assert torch.get_default_device().type == "cpu"


@pytest.mark.parametrize("key", ["dataset", "always_reason_dataset", "mbeir"])
def test_data_that_are_not_there_are_the_error_of_the_training(config: TrainConfig, tmp_path: Path, key: str) -> None:
    value = tmp_path / "none" if key == "mbeir" else str(tmp_path / "none")
    data = config.data.model_copy(update={key: value})
    variants = ("always-reason",) if key == "always_reason_dataset" else ("trace",)
    chosen = config.model_copy(update={"data": data, "variants": variants, "out": tmp_path / "run"})
    with pytest.raises(CotError) as trained:
        train(chosen, variants[0])
    with pytest.raises(type(trained.value)) as planned:
        make_plan(chosen, 1)
    assert planned.value.problem == trained.value.problem
    assert planned.value.remedy.startswith(trained.value.remedy)
    assert "--published" in planned.value.remedy
    assert make_plan(chosen, 1, published=True).runs[0].counted == "published"


def test_the_command(train_file: Path, tmp_path: Path) -> None:
    done = mbeir_cot("train", train_file, "--dry-run", "--json", "--mfu", "0.2", "--out", tmp_path / "run", timeout=100)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mfu"] == 0.2
    assert not (tmp_path / "run").exists()
    done = mbeir_cot("train", train_file, "--json", "--out", tmp_path / "run", timeout=100)
    assert done.returncode == 2
    assert "without --dry-run" in done.stderr
