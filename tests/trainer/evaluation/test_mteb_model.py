"""An embedder behind MTEB's protocol: the vectors that it gives anyway. `test_mteb_tasks` has mteb itself."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mbeir_cot.commands import mteb as mteb_command
from schemas.errors import ConfigError, InputError
from schemas.training import TrainConfig
from trainer.embedding.trace_embedder import DEFAULT_INSTRUCTION, TraceEmbedder
from trainer.embedding.workers import EmbedderSpec
from trainer.evaluation.mteb_model import MtebModel

PICTURES = [Image.new("RGB", (112, 112), colour) for colour in ("red", "green", "blue")]
TEXTS = ["a red thing", "a green thing", "a blue thing"]


@pytest.fixture(scope="module")
def embedder(request: pytest.FixtureRequest) -> TraceEmbedder:
    config: TrainConfig = request.getfixturevalue("config")
    return TraceEmbedder(EmbedderSpec(config, None).load(), config, sha256="f" * 64)


def encode(model: MtebModel, *batches: dict[str, Any], task: Any = None, kind: str | None = None) -> np.ndarray[Any, Any]:
    task = task or SimpleNamespace(name="T", prompt=None)
    return model.encode(list(batches), task_metadata=task, hf_split="test", hf_subset="default", prompt_type=kind)


def expected(embedder: TraceEmbedder, queries: list[Any], instruction: Any) -> np.ndarray[Any, Any]:
    found = embedder.embed_queries(queries, instruction=instruction, route="always-direct")
    return np.stack([one.vector.numpy() for one in found])


def test_queries_and_documents_are_what_the_embedder_gives(embedder: TraceEmbedder) -> None:
    model = MtebModel(embedder, "org/name", route="always-direct")
    halves = {"text": TEXTS[:2], "image": PICTURES[:2]}, {"text": TEXTS[2:], "image": PICTURES[2:]}
    both = list(zip(TEXTS, PICTURES, strict=True))
    assert np.abs(encode(model, *halves, kind="document") - embedder.embed_candidates(both)).max() < 1e-5
    assert np.abs(encode(model, {"image": PICTURES}) - embedder.embed_candidates(PICTURES)).max() < 1e-5
    for task, instruction in (
        (SimpleNamespace(name="plain", prompt=None), DEFAULT_INSTRUCTION),
        (SimpleNamespace(name="text", prompt="Find it."), "Find it."),
        (SimpleNamespace(name="sides", prompt={"query": "Find that.", "document": "x"}), "Find that."),
    ):
        found = encode(model, {"text": TEXTS}, task=task, kind="query")
        assert np.abs(found - expected(embedder, TEXTS, instruction)).max() < 1e-5
        assert model.routes[task.name] == {"queries": 3, "reasoned": 0, "cut": 0, "tokens": 0}
    own = {"text": ["joined"] * 3, "query": TEXTS, "instruction": ["One.", "Two.", "Three."]}
    assert np.abs(encode(model, own, kind="query") - expected(embedder, TEXTS, ["One.", "Two.", "Three."])).max() < 1e-5
    given = MtebModel(embedder, "org/name", route="always-direct", instructions={"T": "Mine."})
    assert np.abs(encode(given, {"text": TEXTS}, kind="query") - expected(embedder, TEXTS, "Mine.")).max() < 1e-5
    vectors = encode(model, {"text": TEXTS})
    assert np.allclose(np.diag(model.similarity(vectors, vectors)), 1, atol=1e-5)
    assert np.allclose(model.similarity_pairwise(vectors, vectors), 1, atol=1e-5)
    assert encode(model).shape == (0, embedder.dim)


def test_what_is_no_text_or_image_is_refused(embedder: TraceEmbedder) -> None:
    model = MtebModel(embedder, "org/name")
    with pytest.raises(InputError, match="mteb asks for audio"):
        encode(model, {"audio": [1]})
    with pytest.raises(InputError, match="gives a list for a text"):
        encode(model, {"text": [["a turn"]]}, kind="query")


def test_the_command_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(ConfigError, match="mteb cannot be imported") as raised:
        mteb_command.mteb(tmp_path, tasks=["X"], out=tmp_path / "out")
    assert raised.value.remedy == "pip install 'mteb>=2'"
