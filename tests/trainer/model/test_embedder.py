from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, Qwen2_5_VLModel

from pocket.training.train_models import MODELS
from schemas.errors import ConfigError, InputError
from schemas.training import LoraSettings, TrainConfig
from tests.trainer.conftest import fresh, source_of
from trainer.model.embedder import Embedder
from trainer.model.pretrained import add_emb_token


class _Model:
    """The parts of a model that adding a token needs."""

    def __init__(self, rows: int, tied: bool) -> None:
        self.config, self.dtype = SimpleNamespace(tie_word_embeddings=tied), torch.float32
        self.into, self.out = nn.Embedding(rows, 4), nn.Linear(4, rows, bias=False)
        if tied:
            self.out.weight = self.into.weight

    def get_input_embeddings(self) -> nn.Embedding:
        return self.into

    def get_output_embeddings(self) -> nn.Linear:
        return self.out

    def resize_token_embeddings(self, rows: int, mean_resizing: bool) -> None:
        old = self.into.weight.data, self.out.weight.data
        self.into, self.out = nn.Embedding(rows, 4), nn.Linear(4, rows, bias=False)
        for new, kept in zip((self.into, self.out), old, strict=True):
            new.weight.data[: len(kept)] = kept


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [0, 100])
def test_the_embedding_matrix_is_never_shrunk(spare: int, tied: bool) -> None:
    """Checkpoints have more rows than their tokenizer has tokens; the usual resize would remove them."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "teacher")
    model = _Model(len(tokenizer) + spare, tied)
    before = model.into.weight.data.clone()
    emb_id = add_emb_token(model, tokenizer)
    assert len(model.into.weight) >= len(before)
    assert tokenizer.decode([emb_id]) == "<|emb|>"
    others = [i for i in range(len(before)) if i != emb_id]
    assert torch.equal(model.into.weight[others], before[others])
    assert torch.allclose(model.into.weight[emb_id], before.mean(0), atol=1e-6)
    assert (
        len(tokenizer("a <|emb|>", add_special_tokens=False).input_ids)
        == len(tokenizer("a ", add_special_tokens=False).input_ids) + 1
    )


def test_only_the_language_model_and_the_token_are_trained(config: TrainConfig) -> None:
    trained = [name for name, p in fresh(config).named_parameters() if p.requires_grad]
    assert not [name for name in trained if "visual" in name]
    assert {name.split(".layers.")[0] for name in trained if "lora" in name} == {"model.model.language_model"}
    projector = [
        name for name, p in fresh(config, train_projector=True).named_parameters() if p.requires_grad and "visual" in name
    ]
    assert projector
    assert all(".merger." in name for name in projector)


def test_a_saved_embedder_gives_the_same_embeddings(config: TrainConfig, tmp_path: Path) -> None:
    embedder = fresh(config, train_projector=True).eval()
    with torch.no_grad():
        for name, parameter in embedder.named_parameters():
            if ".merger." in name or "trainable_tokens" in name:
                parameter += 0.05
    chunk = source_of(config, embedder)[0].queries[0]
    with torch.no_grad():
        vectors, losses = embedder(chunk)
    embedder.save(tmp_path)
    again = Embedder.load(tmp_path, config.model)
    with torch.no_grad():
        found, words = again(chunk)
    assert torch.equal(found, vectors)
    assert torch.equal(words, losses)
    assert float(again.scale) == pytest.approx(20.0, rel=1e-5)


def test_a_load_error_names_its_cause(config: TrainConfig, tmp_path: Path) -> None:
    embedder = fresh(config)
    embedder.save(tmp_path)
    files = [tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json"]
    known = [file.read_text() for file in files]
    for file, complaint in zip(
        files, (r"<\|emb\|> is token 1025 in .* and 1024 with its base", r"has no <\|emb\|>"), strict=True
    ):
        file.write_text(file.read_text().replace("<|emb|>", "<|bme|>"))
        with pytest.raises(InputError, match=complaint):
            Embedder.load(tmp_path, config.model)
    for file, text in zip(files, known, strict=True):
        file.write_text(text)
    with pytest.raises(ConfigError, match="was trained with pool: pre, not token"):
        Embedder.load(tmp_path, config.model, pool="token")
    adapter = tmp_path / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read"):
        Embedder.load(tmp_path, config.model)
    identity = tmp_path / "embedder.json"
    identity.write_text(json.dumps({"pool": "mean"}))
    with pytest.raises(InputError, match=r"embedder\.json is damaged"):
        Embedder.load(tmp_path, config.model)
    with pytest.raises(InputError, match="no checkpoint of this trainer"):
        Embedder.load(tmp_path / "none", config.model)
    with pytest.raises(InputError, match="the model .*none cannot be loaded"):
        fresh(config, base=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"model\.lora\.targets 'nothing' fits no module"):
        fresh(config, lora=LoraSettings(targets="nothing"))


def test_a_model_that_would_ignore_images_is_refused(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, input_ids: Any = None, **kwargs: Any) -> None:
        """As in transformers before 5.19."""

    monkeypatch.setattr(Qwen2_5_VLModel, "forward", forward)
    with pytest.raises(InputError, match="does not take encoded images") as refused:
        fresh(config)
    assert "install transformers 5.19" in refused.value.remedy
