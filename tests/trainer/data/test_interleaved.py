"""Queries of several images, from the dataset's rows to vectors; one image stays what it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.mbeir.image_store import ImageStore
from prompts import ImageSlot, PromptSet
from schemas.content import ContentPart
from schemas.errors import InputError
from schemas.training import AdaptiveSettings, TrainConfig
from tests.trainer.conftest import fresh, rows, source_of, write_dataset
from trainer.data.dataset import Records
from trainer.data.unreadable import UnreadableImage
from trainer.embedding.embed import StudentQuery
from trainer.embedding.trace_embedder import TraceEmbedder
from trainer.embedding.transformers_engine import AdaptiveEmbedder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "green")):
        Image.new("RGB", (112, 112), colour).save(tmp_path / f"{name}.png")
    return tmp_path


PARTS = (ContentPart("a dog"), ContentPart(image="a.png"), ContentPart("then a cat"), ContentPart(image="b.png"))


@pytest.mark.parametrize("name", ["full", "pocket"])
def test_pictures_stand_among_the_texts_and_no_text_makes_one(name: str) -> None:
    prompts = PromptSet.load(name)
    shown = ("first <image> \x00image:query\x00", ImageSlot("query"), "second", ImageSlot("query"))
    found = prompts.render("student_query", instruction="Find.", query_text=shown, has_image=False)
    assert [isinstance(part, ImageSlot) for part in found] == [False, True, False, True]
    texts = [part for part in found if isinstance(part, str)]
    assert "Find." in texts[0]
    assert texts[0].rstrip().endswith("first ‹image› image:query")
    assert texts[1].strip() == "second"


def test_the_order_and_each_picture_count(config: TrainConfig, pictures: Path) -> None:
    embedder = fresh(config).eval()
    encoder, store = embedder.encoder(), ImageStore(pictures)
    swapped = (PARTS[0], PARTS[3], PARTS[2], PARTS[1])
    other = (*PARTS[:3], ContentPart(image="c.png"))
    asked = [StudentQuery(str(at), "Find.", None, None, parts) for at, parts in enumerate((PARTS, swapped, other))]
    prepared = [one.encode(encoder, store) for one in asked]
    opened = [part.text or Image.open(pictures / (part.image or "")) for part in PARTS]
    prepared.append(encoder.encode_interleaved("drawn", "Find.", opened))
    adaptive = AdaptiveEmbedder(embedder, AdaptiveSettings(max_new_tokens=2))
    vectors = torch.stack([one.vector for one in adaptive.embed(prepared, route="always-direct")])
    assert (vectors[0] - vectors[3]).abs().max() < 1e-5
    assert min(float((vectors[0] - vectors[at]).abs().max()) for at in (1, 2)) > 1e-4
    alone = adaptive.embed(prepared[:1], route="always-direct")[0].vector
    assert (alone - vectors[0]).abs().max() < 1e-5
    with pytest.raises(UnreadableImage, match=r"query q: image 'gone.png'"):
        StudentQuery("q", "Find.", None, None, (ContentPart(image="gone.png"),)).encode(encoder, store)


def test_the_public_embedder_takes_a_list(config: TrainConfig, pictures: Path) -> None:
    embedder = TraceEmbedder(fresh(config).eval(), config)
    paths = ["a dog", pictures / "a.png", "then a cat", pictures / "b.png"]
    drawn = ["a dog", Image.open(pictures / "a.png"), "then a cat", Image.open(pictures / "b.png")]
    one, two = embedder.embed_queries([paths, drawn], route="always-direct")  # type: ignore[list-item]
    assert (one.vector - two.vector).abs().max() < 1e-5
    with pytest.raises(InputError, match="query 0 is empty"):
        embedder.embed_queries([[]])


def test_training_rows_take_several_images(config: TrainConfig, small_world: Path, tmp_path: Path) -> None:
    plain = list(rows(small_world, each=2))
    directory = write_dataset(tmp_path / "d", plain)
    before = Records.load(str(directory))
    assert before.item(0).parts == ()
    shown = [row["query_image"] for row in plain if row["query_image"]][:2]
    file = next((directory / "data").glob("*.parquet"))
    table = pq.read_table(file).to_pylist()
    parts = [{"text": "from", "image": None}, *({"text": None, "image": path} for path in shown)]
    written = [row | {"query_parts": None} for row in table]
    written[0] |= {"query_parts": parts, "query_text": None, "query_image": None}
    pq.write_table(pq.read_table(file).from_pylist(written), file)
    records = Records.load(str(directory))
    assert records.item(0).parts == tuple(ContentPart(**part) for part in parts)
    assert records.item(1) == before.item(1)
    assert records.query_images()[0] == shown
    changed = config.model_copy(update={"data": config.data.model_copy(update={"dataset": str(directory)})})
    source = source_of(changed, fresh(config))
    row = source.encode_query(records.item(0), 0)[0]
    assert len(row.pictures) == 2
    grid = source.encoder.make_chunk([row]).inputs["image_grid_thw"]
    assert np.asarray(grid).shape == (2, 3)
    written[0]["query_parts"] = [{"text": None, "image": None}]
    pq.write_table(pq.read_table(file).from_pylist(written), file)
    with pytest.raises(InputError, match="a text or an image"):
        Records.load(str(directory)).item(0)
