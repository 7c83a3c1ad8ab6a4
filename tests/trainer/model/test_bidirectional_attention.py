"""Bidirectional attention and mean pooling: numbers, what is saved, and what refuses them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.config import load_config
from schemas.errors import ConfigError
from schemas.training import AdaptiveSettings, LossSettings, TrainConfig
from tests.trainer.conftest import fresh, source_of
from tests.trainer.training.test_step import ONE, agree
from trainer.data.encoding import EncodedSequence
from trainer.embedding.transformers_engine import AdaptiveEmbedder
from trainer.model.embedder import Embedder, mean_states
from trainer.model.location import checkpoint_settings
from trainer.model.metadata import METADATA
from trainer.model.whole_weights import write_weights
from trainer.release.merge import merge
from trainer.training.step import train_step


def both_ways(config: TrainConfig, attention: str = "eager") -> Embedder:
    return fresh(config, pooling="mean", bidirectional_attention=True, attention=attention).eval()


def queries(embedder: Embedder) -> list[EncodedSequence]:
    picture = Image.new("RGB", (112, 112), "red")
    return [
        embedder.encoder().encode_query(f"q{i}", "Find.", "word " * (1 + 4 * i), picture if i % 2 else None) for i in range(3)
    ]


def test_the_mean_is_over_the_sequence_without_padding() -> None:
    states = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]], [[4.0, 3.0], [9.0, 9.0], [float("nan"), 9.0]]])
    found = mean_states(states, torch.tensor([[1, 1, 1], [1, 0, 0]]))
    assert torch.allclose(found, torch.tensor([[0.8, 0.6], [0.8, 0.6]]))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_token_attends_to_all_others_and_to_no_padding(config: TrainConfig, attention: str) -> None:
    """Against a pass of transformers' own with an explicit mask of the whole sequence, one query at a time."""
    embedder = both_ways(config, attention)
    rows = queries(embedder)
    causal = fresh(config, attention=attention).eval()
    with torch.no_grad():
        together, _ = embedder(embedder.encoder().make_chunk(rows))
        for row, vector in zip(rows, together, strict=True):
            chunk = causal.encoder().make_chunk([row])
            length = int(chunk.inputs["attention_mask"].sum())
            chunk.inputs = {n: v[..., :length] if n.endswith("_ids") else v for n, v in chunk.inputs.items()}
            inputs = {name: chunk.inputs[name] for name in ("input_ids", "position_ids", "mm_token_type_ids")}
            if "pixel_values" in chunk.inputs:
                inputs |= {"mm_encoder_outputs": {"image": causal.encode_images(chunk.to(causal.device))}}
            everything = {"full_attention": torch.zeros(1, 1, length, length)}  # added to the scores
            states = causal.model.model(**inputs, attention_mask=everything, use_cache=False).last_hidden_state
            whole = torch.nn.functional.normalize(states.mean(1), dim=-1)[0]
            assert torch.allclose(vector, whole, atol=3e-6)
            usual = torch.nn.functional.normalize(causal.states(chunk).mean(1), dim=-1)[0]
            assert not torch.allclose(vector, usual, atol=1e-3)


def test_it_is_saved_and_used_again(config: TrainConfig, tmp_path: Path) -> None:
    embedder = both_ways(config)
    embedder.save(tmp_path)
    loaded = Embedder.load(tmp_path)
    assert (loaded.metadata.pool, loaded.metadata.bidirectional) == ("mean", True)
    found = AdaptiveEmbedder(loaded, AdaptiveSettings(prefill_rows=2)).embed(queries(loaded))
    with torch.no_grad():
        vectors, _ = embedder(embedder.encoder().make_chunk(queries(embedder)))
    assert torch.allclose(torch.stack([one.vector for one in found]), vectors, atol=3e-6)
    assert [(one.reasoned, one.ended, one.trace) for one in found] == [(False, True, "")] * 3
    settings = checkpoint_settings(tmp_path, ["data.mbeir=x"])
    assert (settings.model.pooling, settings.model.bidirectional_attention, settings.variants) == ("mean", True, ("direct",))
    usual = fresh(config)
    usual.metadata.write(tmp_path)
    assert "bidirectional" not in (tmp_path / METADATA).read_text()  # which earlier versions read


def test_what_writes_or_serves_refuses_it(config: TrainConfig, train_file: Path, tmp_path: Path) -> None:
    for key in ("model.pooling=mean", "model.bidirectional_attention=true"):
        for changes, message in (
            ((), "trace writes traces; set variants"),
            (("variants=[direct]", "adaptive.engine=vllm"), "vLLM would attend causally"),
            (("variants=[direct]", "evaluation.base_answers=true"), "base_answers lets the base write"),
        ):
            with pytest.raises(ConfigError, match=message):
                load_config(train_file, TrainConfig, (key, *changes))
        assert load_config(train_file, TrainConfig, (key, "variants=[direct]")).variants == ("direct",)
    embedder = both_ways(config)
    with pytest.raises(ConfigError, match="writes no traces"):
        AdaptiveEmbedder(embedder, AdaptiveSettings()).embed(queries(embedder), route="always-reason")
    with pytest.raises(ConfigError, match="mean pooling or bidirectional attention"):
        write_weights(embedder, tmp_path)
    with pytest.raises(ConfigError, match="mean pooling or bidirectional attention"):
        merge(embedder, [], [], tmp_path / "merged", settings=AdaptiveSettings())


@pytest.mark.slow
def test_a_training_and_its_chunks(config: TrainConfig) -> None:
    found = []
    for chunk in (64, 3):
        changed = config.model_copy(update={"batch": config.batch.model_copy(update={"micro_batch_size": chunk})})
        embedder = fresh(changed, pooling="mean", bidirectional_attention=True).train()
        source = source_of(changed, embedder)
        source.variant = "direct"
        train_step(embedder, source[0], LossSettings(temperature=0.05), ONE)
        found.append({name: p.grad for name, p in embedder.named_parameters() if p.grad is not None})
    agree(found[0], found[1], 2e-4)
