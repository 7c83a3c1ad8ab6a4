"""Other models than the pocket base, with random weights: an untied Qwen2.5-VL, and Qwen3-VL with its deepstack."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from pipeline.config import load_config
from pocket.training.tiny_qwen import CHAT_TEMPLATE, build_processor
from pocket.training.train_models import MODELS
from schemas.training import AdaptiveSettings, LossSettings, TrainConfig, Variant
from tests.trainer.conftest import fresh, source_of
from tests.trainer.embedding.test_transformers_engine import some_rows
from trainer.data.process_group import ProcessGroup
from trainer.embedding.transformers_engine import AdaptiveEmbedder
from trainer.model.emb_token import initialise_emb_token
from trainer.model.embedder import Embedder
from trainer.training.step import train_step
from trainer.training.train import train

ONE = ProcessGroup(0, 1, torch.device("cpu"))


def qwen25(directory: Path, *, tied: bool) -> None:
    known = json.loads((MODELS / "base" / "config.json").read_text())
    known["tie_word_embeddings"] = known["text_config"]["tie_word_embeddings"] = tied
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**known))
    model.save_pretrained(directory)
    build_processor(AutoTokenizer.from_pretrained(MODELS / "base")).save_pretrained(directory)


def qwen3(directory: Path, *, tied: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "base")
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image_pad", "video_pad", "vision_start", "vision_end")
    }
    text = {
        "vocab_size": len(tokenizer) + 8,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True, "rope_theta": 1e4},
        "tie_word_embeddings": tied,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=tied,
    )
    Qwen3VLForConditionalGeneration(config).save_pretrained(directory)
    pixels = {"shortest_edge": 64**2, "longest_edge": 64**2}
    images = Qwen2VLImageProcessor(patch_size=8, merge_size=2, size=pixels, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    videos = Qwen3VLVideoProcessor()
    Qwen3VLProcessor(images, tokenizer, videos, chat_template=CHAT_TEMPLATE).save_pretrained(directory)


MAKERS: dict[str, tuple[Any, bool]] = {
    "Qwen2.5-VL, untied": (qwen25, False),
    "Qwen3-VL, tied": (qwen3, True),
    "Qwen3-VL, untied": (qwen3, False),
}


@pytest.fixture(scope="module", params=list(MAKERS))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make, tied = MAKERS[request.param]
    directory = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    make(directory, tied=tied)
    return directory


@pytest.mark.slow
def test_it_trains_saves_and_embeds_adaptively(config: TrainConfig, base: Path, tmp_path: Path) -> None:
    embedder = fresh(config, base=str(base), train_projector=True).train()
    source = source_of(config, embedder)
    initialise_emb_token(embedder, source.sample_labelled(8), ONE)
    optimiser = torch.optim.AdamW([p for p in embedder.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(6):
        optimiser.zero_grad()
        losses.append(train_step(embedder, source[0], LossSettings(temperature=0.1), ONE).total)
        optimiser.step()
    assert losses[-1] < losses[0]
    trained = [name for name, p in embedder.named_parameters() if p.requires_grad]
    assert any("lora" in name for name in trained)
    assert all("merger" in name for name in trained if "visual" in name)
    # the embedding token's row is trained wherever the model keeps it
    moved = [name for name, p in embedder.named_parameters() if "trainable_tokens_delta" in name and p.grad is not None]
    assert len(moved) == (1 if embedder.model.config.tie_word_embeddings else 2)

    embedder.eval()
    embedder.save(tmp_path)
    again = Embedder.load(tmp_path, config.model.model_copy(update={"base": str(base)}))
    rows = some_rows(embedder.encoder())
    settings = AdaptiveSettings(max_new_tokens=5, prefill_rows=3, decode_rows=2)
    found = AdaptiveEmbedder(embedder, settings).embed(rows, route="always-reason")
    same = AdaptiveEmbedder(again.fold_adapter(), settings).embed(rows, route="always-reason")
    alone = AdaptiveEmbedder(embedder, settings)
    for row, one, other in zip(rows, found, same, strict=True):
        assert one.trace == other.trace
        assert torch.allclose(one.vector, other.vector, atol=1e-5)
        (single,) = alone.embed([row], route="always-reason")
        assert torch.allclose(one.vector, single.vector, atol=1e-5)
    direct = AdaptiveEmbedder(embedder, settings).embed(rows, route="always-direct")
    with torch.no_grad():
        vectors, _ = embedder(embedder.encoder().make_chunk(rows), labelled=False)
    assert torch.allclose(torch.stack([one.vector for one in direct]), vectors, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("make", [qwen25, qwen3])
def test_the_vision_tower_attends_in_few_calls_in_training(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    torch.manual_seed(0)
    make(tmp_path, tied=False)
    real, calls = torch.nn.functional.scaled_dot_product_attention, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return real(*args, **kwargs)

    vectors, counts = [], []
    for attention in ("eager", "sdpa"):
        embedder = fresh(config, base=str(tmp_path), attention=attention).eval()
        chunks = [
            chunk for chunk in source_of(config, embedder)[0].candidates if len(chunk.inputs.get("image_grid_thw", ())) > 1
        ]
        assert chunks
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
        calls.clear()
        with torch.no_grad():
            vectors.append(torch.cat([embedder(chunk, labelled=False)[0] for chunk in chunks]))
        counts.append(len(calls))
        monkeypatch.undo()
    visual, text = embedder.model.config.vision_config.depth, embedder.model.config.text_config.num_hidden_layers
    assert counts[1] == len(chunks) * (visual + text)  # images of one size: one call per block
    assert torch.allclose(vectors[0], vectors[1], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["direct", "trace"])
def test_the_strong_recipes_take_their_steps(config: TrainConfig, tmp_path: Path, variant: Variant) -> None:
    """With the shipped settings of model, batch, loss, optimiser and traces; only base, data and sizes differ."""
    base = tmp_path / "base"
    torch.manual_seed(0)
    qwen25(base, tied=False)
    shipped = load_config(Path(f"configs/{variant}-strong-7b.yaml"), TrainConfig, ())
    assert shipped.variants == (variant,)
    recipe = shipped.model_copy(
        update={
            "model": shipped.model.model_copy(update={"base": str(base), "max_pixels": None}),
            "data": config.data.model_copy(update={"hard_negatives": 1}),
            "out": tmp_path / "run",
            "device": "cpu",
            "batch": shipped.batch.model_copy(update={"global_batch_size": 4, "micro_batch_size": 4}),
            "optimiser": shipped.optimiser.model_copy(update={"max_steps": 4}),
            "traces": shipped.traces.model_copy(update={"first_stage_steps": 2, "refresh": 1}),
            "adaptive": shipped.adaptive.model_copy(update={"max_new_tokens": 4}),
        }
    )
    loaded = Embedder.load(train(recipe, variant), recipe.model)
    steps = [json.loads(line) for line in (recipe.out / variant / "metrics.jsonl").read_text().splitlines()]
    assert [step["retrieval"] > 0 for step in steps] == [variant == "direct"] * 2 + [True] * 2
    assert loaded.metadata.temperature != pytest.approx(shipped.loss.temperature, rel=1e-6)
    queries = AdaptiveEmbedder(loaded, recipe.adaptive).embed(some_rows(loaded.encoder()))
    assert all(bool(torch.isfinite(one.vector).all()) for one in queries)
    assert loaded.metadata.bidirectional == (variant == "direct")


@pytest.mark.slow
def test_the_7b_recipe_takes_its_steps_in_bfloat16(config: TrainConfig, tmp_path: Path) -> None:
    """With the shipped settings of model, batch, loss and optimiser; only base, data and sizes differ."""
    base = tmp_path / "base"
    torch.manual_seed(0)
    qwen25(base, tied=False)
    shipped = load_config(Path("configs/train-trace-7b.yaml"), TrainConfig, ())
    recipe = shipped.model_copy(
        update={
            "model": shipped.model.model_copy(update={"base": str(base), "max_pixels": None, "revision": None}),
            "data": config.data,
            "out": tmp_path / "run",
            "device": "cpu",
            "batch": shipped.batch.model_copy(update={"global_batch_size": 4, "micro_batch_size": 4}),
            "optimiser": shipped.optimiser.model_copy(update={"max_steps": 3}),
            "checkpoint": shipped.checkpoint.model_copy(update={"save_every": 2}),
        }
    )
    done = train(recipe, "trace")
    undisturbed = (recipe.out / "trace" / "metrics.jsonl").read_text().splitlines()
    shutil.rmtree(done)
    for left in (recipe.out / "trace" / "checkpoints").glob("*3"):
        shutil.rmtree(left)
    assert train(recipe, "trace") == done
    resumed = (recipe.out / "trace" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["total"] for line in resumed] == [json.loads(line)["total"] for line in undisturbed]

    embedder = Embedder.load(done, recipe.model)
    rows = some_rows(embedder.encoder())
    settings = AdaptiveSettings(max_new_tokens=4, prefill_rows=3, decode_rows=2)
    before = AdaptiveEmbedder(embedder, settings).embed(rows, route="always-direct")
    after = AdaptiveEmbedder(embedder.fold_adapter(), settings).embed(rows, route="always-direct")
    for one, other in zip(before, after, strict=True):
        assert float(one.vector @ other.vector) > 0.99
    assert all(torch.isfinite(one.vector).all() for one in AdaptiveEmbedder(embedder, settings).embed(rows, route="learned"))
