"""An embedder behind MTEB's protocol: the vectors that it gives anyway; mteb itself where it is installed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from schemas.errors import InputError
from schemas.training import TrainConfig
from tests.support.cli import mbeir_cot
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


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    try:
        import mteb  # noqa: F401
    except ImportError:
        done = mbeir_cot("mteb", tmp_path, "--tasks", "X", "--out", tmp_path / "out")
        assert done.returncode == 2
        assert "pip install" in done.stderr


def test_two_tasks_of_mteb(embedder: TraceEmbedder, tmp_path: Path) -> None:
    mteb = pytest.importorskip("mteb")
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import EncoderProtocol

    def task(name: str, category: str, corpus: dict[str, list[Any]], queries: dict[str, list[Any]]) -> Any:
        ids = [str(at) for at in range(3)]
        about = TaskMetadata(
            name=name,
            description="local",
            reference=None,
            dataset={"path": "local/none", "revision": "1"},
            type="Any2AnyRetrieval" if "i" in category else "Retrieval",
            category=category,
            modalities=["text", "image"] if "i" in category else ["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            prompt={"query": "Find it."},
        )
        data = {
            "corpus": Dataset.from_dict({"id": ids, **corpus}),
            "queries": Dataset.from_dict({"id": ids, **queries}),
            "relevant_docs": {one: {one: 1} for one in ids},
            "top_ranked": None,
        }

        def load(self: Any, **kwargs: Any) -> None:
            self.dataset = {"default": {"test": data}}
            self.data_loaded = True

        return type(name, (AbsTaskRetrieval,), {"metadata": about, "load_data": load})()

    texts = task("LocalTexts", "t2t", {"text": TEXTS}, {"text": TEXTS})
    pictures = task(
        "LocalPictures", "t2i", {"image": PICTURES, "modality": ["image"] * 3}, {"text": TEXTS, "modality": ["text"] * 3}
    )
    model = MtebModel(embedder, "org/name", route="always-direct")
    assert isinstance(model, EncoderProtocol)
    results = mteb.evaluate(model, [texts, pictures], cache=mteb.ResultCache(tmp_path), show_progress_bar=False)
    assert [one.task_name for one in results.task_results] == ["LocalTexts", "LocalPictures"]
    assert model.routes["LocalTexts"]["queries"] == model.routes["LocalPictures"]["queries"] == 3
    scores = expected(embedder, TEXTS, "Find it.") @ embedder.embed_candidates(PICTURES).T
    ranks = (scores > np.diag(scores)[:, None]).sum(1)
    ndcg = float(np.mean(1 / np.log2(ranks + 2)))
    assert results.task_results[1].get_score() == pytest.approx(ndcg, abs=1e-4)
