"""The public embedder: the vectors of `eval`, index and `search`, for every way to give a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.mbeir.layout import Layout
from pipeline.mbeir.pools import CandidatePool
from schemas.errors import ConfigError, InputError
from schemas.mbeir import DatasetTask
from schemas.training import TrainConfig
from tests.support.cli import mbeir_cot
from trainer import Index, TraceEmbedder, evaluate_run, load_settings
from trainer.embedding.files import EmbeddingFiles, load_embeddings
from trainer.embedding.trace_embedder import TextOrImage
from trainer.embedding.workers import EmbedderSpec
from trainer.evaluation.query_log import queries_file, read_query_log

TASKS = (DatasetTask("cirr", 7), DatasetTask("webqa", 1))


@pytest.fixture(scope="module")
def embedder(finished: Path) -> TraceEmbedder:
    return TraceEmbedder.load(finished, device="cpu")


def given(mbeir: Path, text: str | None, image: str | None) -> TextOrImage:
    if image is None:
        return text or ""
    return (text, mbeir / image) if text else mbeir / image


@pytest.mark.slow
def test_vectors_equal_those_of_an_evaluation(
    finished: Path, tiny_world: Path, tmp_path: Path, embedder: TraceEmbedder
) -> None:
    overrides = [f"data.mbeir={tiny_world}", "evaluation.split=val", "evaluation.base=false", "variants=[trace]"]
    settings = load_settings(finished, [*overrides, f"out={tmp_path}"])
    with pytest.raises(InputError, match="missing or not finished"):
        evaluate_run(settings)
    results = evaluate_run(settings, model=finished / "trace" / "model")
    names = ["trace", "trace, routed by modality", "trace, routed at random"]
    assert [one.name for one in results] == names
    assert [one["name"] for one in json.loads((tmp_path / "eval" / "results_val.json").read_text())] == names

    files = EmbeddingFiles(tmp_path / "eval", "trace")
    lines = read_query_log(queries_file(tmp_path / "eval", "trace", "val"))
    for task in TASKS:
        asked = [line for line in lines if line["task"] == task.name]
        found = embedder.embed_queries(
            [given(tiny_world, line["text"], line["image"]) for line in asked],
            instruction=[line["instruction"] for line in asked],
        )
        assert [(one.reasoned, one.trace) for one in found] == [(line["reasoned"], line["trace"]) for line in asked]
        vectors = np.stack([one.vector.numpy() for one in found])
        assert vectors.shape == (12, embedder.dim)
        assert np.abs(vectors - load_embeddings(files.queries(task, "val")).vectors).max() < 1e-3

        path = Layout.open(tiny_world).local_pool(task, "val")
        assert path is not None
        with CandidatePool.open(path, settings.data.candidate_cache) as pool:
            candidates = pool.fetch([json.loads(line)["did"] for line in path.read_text().splitlines()[:40]])
        made = embedder.embed_candidates([given(tiny_world, one.txt, one.img_path) for one in candidates])
        assert made.dtype == np.float32
        assert np.abs(made - load_embeddings(files.candidates(task, "val")).vectors[:40]).max() < 1e-3


@pytest.mark.slow
def test_an_index_is_searched_with_texts_and_pictures(
    finished: Path, tiny_world: Path, tmp_path: Path, embedder: TraceEmbedder
) -> None:
    where = tmp_path / "index"
    made = mbeir_cot(
        "index", finished, "--out", where, "--split", "val", "--pool", "webqa_task1", "--set", f"data.mbeir={tiny_world}",
        timeout=200,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    index = Index.open(str(where))
    picture = next((tiny_world / "mbeir_images").rglob("*.jpg"))
    (one, other) = index.find(["a town in the north", ("is red", picture)], embedder, k=3)
    (alone,) = embedder.embed_queries(["a town in the north"])
    assert np.allclose(one.query.vector, alone.vector, atol=1e-5)
    assert [hit.score for hit in one.hits] == sorted((hit.score for hit in one.hits), reverse=True)
    assert len(one.hits) == len(other.hits) == 3
    by_vector = next(index.fetch_hits(index.search(alone.vector.numpy()[None], 3)))
    assert [hit.candidate.did for hit in by_vector] == [hit.candidate.did for hit in one.hits]
    said = mbeir_cot("search", where, "a town in the north", "-k", "3").stdout
    assert all(hit.candidate.did in said for hit in one.hits)
    assert index.find([], embedder) == []
    with pytest.raises(InputError, match="is not the one that made"):
        index.find(["x"], TraceEmbedder(embedder.embedder, embedder.settings, sha256="of other weights"))


def test_paths_and_pil_images_give_the_same_vectors(embedder: TraceEmbedder, tmp_path: Path) -> None:
    """A photograph with an EXIF rotation, and a picture that is half transparent."""
    rng = np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 6
    photograph = tmp_path / "turned.jpg"
    Image.fromarray(rng.integers(0, 255, (64, 96, 3), np.uint8)).save(photograph, exif=turned)
    clear = tmp_path / "clear.png"
    pixels = rng.integers(0, 255, (64, 64, 4), np.uint8)
    pixels[:, :32, 3] = 0
    Image.fromarray(pixels, "RGBA").save(clear)
    for path in (photograph, clear):
        by_path, by_name, by_pil = embedder.embed_candidates([path, (None, str(path)), Image.open(path)])
        assert np.array_equal(by_path, by_name)
        assert np.array_equal(by_path, by_pil)
        plain = embedder.embed_candidates([Image.open(path).convert("RGB").copy()])[0]
        one, other = embedder.embed_queries([("is red", path), ("is red", Image.open(path))], route="always-direct")
        assert np.array_equal(one.vector, other.vector)
        assert path == photograph or not np.allclose(by_path, plain, atol=1e-4), "nothing was to be seen of the rule"


def test_a_checkpoint_loads_without_its_run(finished: Path, embedder: TraceEmbedder) -> None:
    alone = TraceEmbedder.load(str(finished / "trace" / "model"), device="cpu")
    assert alone.sha256 == embedder.sha256
    one, other = (each.embed_candidates(["A red cube."]) for each in (alone, embedder))
    assert np.allclose(one, other, atol=1e-5)  # the run's settings choose another attention
    assert alone.embed_queries([]) == []
    assert alone.embed_candidates([]).shape == (0, alone.dim)


def test_an_input_that_cannot_be_embedded_is_named(embedder: TraceEmbedder, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no picture")
    wrong: list[tuple[TextOrImage, str]] = [
        (" ", "query 1 has neither text nor picture"),
        ((None, None), "query 1 has neither text nor picture"),
        (tmp_path / "none.jpg", "query 1, image none.jpg: no such file"),
        (tmp_path / "notes.jpg", "query 1, image notes.jpg: its content is no image"),
        (Image.new("RGB", (2, 900)), "sides in a ratio above 200"),
    ]
    for query, said in wrong:
        with pytest.raises(InputError, match=said):
            embedder.embed_queries(["fine", query])
    with pytest.raises(InputError, match="1 instructions for 2 queries"):
        embedder.embed_queries(["a", "b"], instruction=["c"])
    with pytest.raises(ConfigError, match="route sideways: unknown"):
        embedder.embed_queries(["a"], route="sideways")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="holds no embedder"):
        TraceEmbedder.load(finished, "trase")
    with pytest.raises(InputError, match="does not exist"):
        TraceEmbedder.load(tmp_path / "nowhere")


def test_vectors_that_are_not_finite_are_refused(config: TrainConfig) -> None:
    diverged = TraceEmbedder(EmbedderSpec(config, None).load(), config)
    assert len(diverged.embed_candidates(["a", "b"])) == 2
    with torch.no_grad():
        for name, parameter in diverged.embedder.named_parameters():
            if "language_model" in name and "norm" in name:
                parameter.fill_(float("nan"))
    with pytest.raises(InputError, match=r"2 of 2 vectors are not finite \(NaN or inf\): candidate 0, candidate 1"):
        diverged.embed_candidates(["a", "b"])
    with pytest.raises(InputError, match=r"1 of 1 vectors are not finite \(NaN or inf\): query 0"):
        diverged.embed_queries(["a"], route="always-direct")
