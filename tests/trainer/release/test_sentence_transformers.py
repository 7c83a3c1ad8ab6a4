"""A merged embedder in the real sentence-transformers: the card's example computes the bypass embeddings."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from pocket.training.train_models import MODELS
from schemas.training import ModelSettings, Pooling, TrainConfig
from trainer.model.embedder import Embedder
from trainer.release.hub_files import render_card
from trainer.release.merge import write_whole

pytestmark = [pytest.mark.slow]


@pytest.mark.parametrize(("pool", "prompts"), [("pre", "pocket"), ("token", "full")])
def test_the_cards_example_computes_the_bypass_embeddings(
    config: TrainConfig, pool: Pooling, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    torch.manual_seed(0)
    embedder = Embedder.create(ModelSettings(base=str(MODELS / "base"), pooling=pool), prompts).eval()
    for name, parameter in embedder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    first = next(path for path in sorted((config.data.mbeir / "mbeir_images").rglob("*.jpg")))
    picture = Image.open(first).convert("RGB")
    picture.save(tmp_path / "picture.jpg")
    picture = Image.open(tmp_path / "picture.jpg").convert("RGB")
    encoder = embedder.encoder()
    rows = [
        encoder.encode_query("a", "Find a picture of it.", "a red cube", None),
        encoder.encode_query("b", "Find the same with this change.", "in blue", picture),
        encoder.encode_candidate("c", "", picture),
        encoder.encode_candidate("d", "A red cube.", None),
    ]
    with torch.inference_mode():
        ours = torch.cat([embedder(encoder.make_chunk([row]), labelled=False)[0] for row in rows])
    whole = tmp_path / "whole"
    whole.mkdir()
    identity = embedder.metadata.model_copy(update={"merged": True})
    write_whole(embedder, whole, render_card(config, "trace", identity, "whole"))
    assert str(MODELS) not in "".join(
        path.read_text() for path in (*whole.glob("*.json"), whole / "README.md") if path.stat().st_size < 99_999
    )
    example = (whole / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(None):
        exec(example, names)
    theirs = torch.cat([torch.from_numpy(names[kind]) for kind in ("queries", "candidates")])
    assert float((ours * theirs).sum(1).min()) > 0.9999
    assert float((ours[0] * ours[1:]).sum(1).max()) < 0.999  # or else any vector would pass
