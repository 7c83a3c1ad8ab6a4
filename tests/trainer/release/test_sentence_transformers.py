"""An embedder in the real sentence-transformers: a card's examples compute its bypass and its adaptive embeddings."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from pocket.training.train_models import MODELS
from schemas.errors import ConfigError, InputError
from schemas.training import ModelSettings, Pooling, TrainConfig
from trainer.embedding.trace_embedder import TraceEmbedder
from trainer.model.embedder import Embedder
from trainer.model.metadata import EmbedderMetadata
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


def test_the_cards_example_computes_the_adaptive_embeddings(
    config: TrainConfig, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that is an adapter, as it is pushed."""
    from PIL import Image
    from sentence_transformers import SentenceTransformer

    from trainer.release.adaptive_module import AdaptiveModule

    model = finished / "trace" / "model"
    first = next(path for path in sorted((config.data.mbeir / "mbeir_images").rglob("*.jpg")))
    Image.open(first).convert("RGB").save(tmp_path / "picture.jpg")
    card = render_card(config, "trace", EmbedderMetadata.read(model), str(model))
    (example,) = [part.split("```")[0] for part in card.split("```python\n")[1:]]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(None):
        exec(example, names)
    embedder, picture = TraceEmbedder.load(model), names["picture"]
    found = embedder.embed_queries(["a red cube", ("in blue", picture)])
    ours = torch.stack([one.vector for one in found])
    assert torch.allclose(torch.from_numpy(names["queries"]), ours, atol=1e-5)
    assert torch.allclose(
        torch.from_numpy(names["candidates"]), torch.from_numpy(embedder.embed_candidates([picture, "A red cube."])), atol=1e-5
    )
    assert sorted(names["traces"]) == sorted(one.trace for one in found)  # sentence-transformers sorts a batch by length
    reasoning = SentenceTransformer(modules=[AdaptiveModule(embedder, route="always-reason")])
    thought = embedder.embed_queries(["a red cube"], instruction="Find it.", route="always-reason")
    vectors = reasoning.encode_query(["a red cube"], prompt="Find it.", convert_to_tensor=True)
    assert torch.allclose(vectors, thought[0].vector, atol=1e-5)
    assert reasoning[0].embedded[0].trace == thought[0].trace != ""

    bypass = SentenceTransformer(modules=[AdaptiveModule(embedder, route="always-direct")])
    direct = embedder.embed_queries(["a red cube"], instruction="Find it.", route="always-direct")
    assert torch.allclose(
        bypass.encode_query(["a red cube"], prompt="Find it.", convert_to_tensor=True), direct[0].vector, atol=1e-5
    )
    assert (bypass.get_embedding_dimension(), bypass[0].embedded[0].reasoned) == (embedder.dim, False)
    with pytest.raises(InputError, match="an input has sound"):
        bypass[0].preprocess([{"sound": 1}])
    with pytest.raises(InputError, match="is a chat message"):
        bypass.encode_query([[{"role": "user", "content": "a red cube"}]])
    with pytest.raises(ConfigError, match="is not saved"):
        bypass.save(str(tmp_path / "out"))
