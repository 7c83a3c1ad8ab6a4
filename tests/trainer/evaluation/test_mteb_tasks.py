"""MTEB scores an embedder: two tasks made here, and its own M-BEIR tasks on repositories that are written from a small world."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import mteb
import numpy as np
import pytest
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol
from numpy.typing import NDArray
from PIL import Image

from pipeline.mbeir.image_store import ImageStore
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.pools import CandidatePool
from pipeline.mbeir.queries import read_queries
from schemas.mbeir import Candidate, DatasetTask, Query
from schemas.training import TrainConfig
from tests.trainer.conftest import fresh
from trainer.embedding.trace_embedder import TextOrImage, TraceEmbedder
from trainer.evaluation.mteb_model import MtebModel

pytestmark = pytest.mark.slow  # importing mteb takes seconds

PICTURES = [Image.new("RGB", (112, 112), colour) for colour in ("red", "green", "blue")]
TEXTS = ["a red thing", "a green thing", "a blue thing"]

QUERIES, CANDIDATES = 6, 16
TASKS = {
    "CIRRIT2IRetrieval": DatasetTask("cirr", 7),
    "EDIST2ITRetrieval": DatasetTask("edis", 2),
    "InfoSeekIT2TRetrieval": DatasetTask("infoseek", 6),
    "MSCOCOT2IRetrieval": DatasetTask("mscoco", 0),
    "NIGHTSI2IRetrieval": DatasetTask("nights", 4),
    "OVENIT2ITRetrieval": DatasetTask("oven", 8),
    "VisualNewsI2TRetrieval": DatasetTask("visualnews", 3),
    "WebQAT2TRetrieval": DatasetTask("webqa", 1),
}
"""One of mteb's 15 tasks for each pair of modalities."""


@pytest.fixture(scope="module")
def embedder(config: TrainConfig) -> TraceEmbedder:
    return TraceEmbedder(fresh(config), config, sha256="f" * 64)


def query_vectors(embedder: TraceEmbedder, queries: list[Any], instruction: str) -> NDArray[np.float32]:
    found = embedder.embed_queries(queries, instruction=instruction, route="always-direct")
    return np.stack([one.vector.numpy() for one in found])


def test_two_tasks_of_mteb(embedder: TraceEmbedder, tmp_path: Path) -> None:
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
            "corpus": datasets.Dataset.from_dict({"id": ids, **corpus}),
            "queries": datasets.Dataset.from_dict({"id": ids, **queries}),
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
    scores = query_vectors(embedder, TEXTS, "Find it.") @ embedder.embed_candidates(PICTURES).T
    ranks = (scores > np.diag(scores)[:, None]).sum(1)
    ndcg = float(np.mean(1 / np.log2(ranks + 2)))
    assert results.task_results[1].get_score() == pytest.approx(ndcg, abs=1e-4)


def read_task(world: Path, task: DatasetTask) -> tuple[list[Query], list[Candidate]]:
    """A few queries with their positives and other candidates."""
    layout = Layout.open(world)
    queries = [query for _, query in islice(read_queries(layout.queries("val", task)), QUERIES)]
    path = layout.local_pool(task, "val")
    assert path is not None
    with CandidatePool.open(path) as pool:
        every = [Candidate.model_validate(row) for batch in pool.batches() for row in batch.to_pylist()]
    wanted = {did for query in queries for did in query.pos_cand_list}
    return queries, [c for number, c in enumerate(every) if number < CANDIDATES or c.did in wanted]


def write_repository(root: Path, world: Path, queries: Iterable[Query], candidates: Iterable[Candidate]) -> Path:
    """Configurations `corpus`, `query` and `qrels`, each with a split `test`, as in mteb's repositories."""
    queries, images = list(queries), ImageStore(world)
    columns = {"id": datasets.Value("string"), "modality": datasets.Value("string"),
               "text": datasets.Value("string"), "image": datasets.Image()}  # fmt: skip

    def picture(path: str | None) -> dict[str, Any] | None:
        return {"bytes": images.read_bytes(path), "path": None} if path else None

    tables = {
        "query": [
            {"id": q.qid, "modality": q.query_modality, "text": q.query_txt or "", "image": picture(q.query_img_path)}
            for q in queries
        ],
        "corpus": [
            {"id": c.did, "modality": c.modality, "text": c.txt or "", "image": picture(c.img_path)} for c in candidates
        ],
    }
    for name, rows in tables.items():
        table = datasets.Dataset.from_list(rows, features=datasets.Features(columns))
        table.to_parquet(root / name / "test-00000-of-00001.parquet")
    qrels = [{"query-id": q.qid, "corpus-id": did, "score": 1} for q in queries for did in q.pos_cand_list]
    datasets.Dataset.from_list(qrels).to_parquet(root / "qrels" / "test-00000-of-00001.parquet")
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/test-*\n" for name in (*tables, "qrels")
    )
    (root / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return root


def shown(world: Path, text: str | None, picture: str | None) -> TextOrImage:
    if picture is None:
        return text or ""
    return (text, world / picture) if text else world / picture


@pytest.mark.parametrize("name", TASKS)
def test_a_task_of_mteb_gets_the_vectors_and_scores_of_mbeir(
    name: str, embedder: TraceEmbedder, small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets"
    )  # which confuses repositories of equal names
    queries, candidates = read_task(small_world, TASKS[name])
    task = mteb.get_task(name)
    assert task.metadata.dataset["path"] == f"mteb/mbeir_{TASKS[name].name}"
    monkeypatch.setitem(task.metadata.dataset, "path", str(write_repository(tmp_path / "r", small_world, queries, candidates)))
    model = MtebModel(embedder, "org/name", route="always-direct")
    results = mteb.evaluate(model, task, cache=mteb.ResultCache(tmp_path / "cache"), show_progress_bar=False)

    (scores,) = results.task_results[0].scores["test"]
    assert model.routes[name]["queries"] == len(queries)
    asked = [shown(small_world, q.query_txt, q.query_img_path) for q in queries]
    embedded = query_vectors(embedder, asked, task.metadata.prompt["query"])
    pool = embedder.embed_candidates([shown(small_world, c.txt, c.img_path) for c in candidates])
    products = embedded @ pool.T
    best = [{candidates[at].did for at in row[:5]} for row in np.argsort(-products, axis=1)]
    recalls = [len(top & set(q.pos_cand_list)) / len(q.pos_cand_list) for top, q in zip(best, queries, strict=True)]
    assert scores["recall_at_5"] == pytest.approx(np.mean(recalls), abs=1e-4)
