from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen3VLConfig, Qwen3VLModel

from schemas.training import Pooling, TrainConfig
from tests.trainer.conftest import fresh
from trainer.data.encoding import EncodedSequence
from trainer.data.micro_batch import IGNORE
from trainer.data.positions import compute_mrope_positions


@pytest.mark.parametrize("pool", ["pre", "token"])
def test_labels_and_the_position_of_the_embedding(config: TrainConfig, pool: Pooling) -> None:
    embedder = fresh(config, pooling=pool)
    encoder, tokenizer = embedder.encoder(), embedder.processor.tokenizer
    picture = Image.new("RGB", (112, 112), "red")
    reasons = encoder.encode_query("q1", "Find it.", "a dog", picture, written="Answer: a dog", labelled=True)
    bypass = encoder.encode_query("q2", "Find it.", "a dog", None, labelled=True)
    chunk = encoder.make_chunk([reasons, bypass, encoder.encode_candidate("d", "a dog", None)])
    for i, written in enumerate(("Answer: a dog", "")):
        learnt = chunk.labels[i] != IGNORE
        assert tokenizer.decode(chunk.labels[i][learnt]) == written + "<|emb|>"
        first = int(learnt.nonzero()[0])
        # each label is at the position before its token
        follows = chunk.inputs["input_ids"][i, first + 1 : first + int(learnt.sum())]
        assert follows.tolist() == chunk.labels[i][learnt][:-1].tolist()
        last = int(chunk.last[i])
        ends_in_token = int(chunk.inputs["input_ids"][i, last]) == embedder.emb_id
        assert ends_in_token == (pool == "token")
        predicts_token = int(chunk.labels[i, last]) == embedder.emb_id
        assert predicts_token == (pool == "pre")
    assert not (chunk.labels[2] != IGNORE).any()
    assert int(chunk.inputs["attention_mask"][1].sum()) == int(chunk.last[1]) + 1


def test_chunks_respect_their_limits_and_rows_their_places(config: TrainConfig) -> None:
    encoder = fresh(config).encoder()
    picture = Image.new("RGB", (112, 112), "red")
    rows = [encoder.encode_query(f"q{i}", "Find.", "word " * i, picture if i % 2 else None) for i in range(7)]
    rows.append(EncodedSequence("extra", rows[0].prompt, rows[0].pictures, "trace", labelled=True, pooled=False))
    each = encoder.count_patches(rows[1])
    chunks = encoder.make_chunks(rows, size=3, patches=2 * each)
    assert all(len(chunk) <= 3 for chunk in chunks)
    assert all(len(chunk.inputs.get("image_grid_thw", ())) <= 2 for chunk in chunks)
    placed = {name: int(place) for chunk in chunks for name, place in zip(chunk.names, chunk.places, strict=True)}
    assert placed == {f"q{i}": i for i in range(7)} | {"extra": -1}


def test_padding_and_neighbours_change_no_embedding(config: TrainConfig) -> None:
    embedder = fresh(config).eval()
    encoder = embedder.encoder()
    picture = Image.new("RGB", (112, 112), "blue")
    rows = [
        encoder.encode_query(f"q{i}", "Find.", "word " * (3 * i), picture if i % 2 else None, written="so " * i)
        for i in range(5)
    ]
    with torch.no_grad():
        together, _ = embedder(encoder.make_chunk(rows))
        for i, row in enumerate(rows):
            alone, _ = embedder(encoder.make_chunk([row]))
            assert torch.allclose(alone[0], together[i], atol=2e-6)


def layouts() -> dict[str, Any]:
    """Models without weights: only their computation of positions is used."""
    text = {"vocab_size": 8, "hidden_size": 32, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 1e4}}  # fmt: skip
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 32}
    with torch.device("meta"):
        return {
            "Qwen2.5-VL": Qwen2_5_VLModel(Qwen2_5_VLConfig(text_config=text, vision_config=vision)),
            "Qwen3-VL": Qwen3VLModel(
                Qwen3VLConfig(text_config=text | {"head_dim": 16}, vision_config=vision | {"deepstack_visual_indexes": []})
            ),
        }


@pytest.mark.parametrize("layout", ["Qwen2.5-VL", "Qwen3-VL"])
def test_positions_equal_the_models(layout: str) -> None:
    """Right-padded rows: only text, one image, several of different sizes, an image at the end."""
    grids = torch.tensor([[1, 4, 4], [1, 2, 10], [1, 6, 2], [1, 8, 8]])
    rows = [[0] * 9, [0] * 3 + [1] * 4 + [0] * 5, [0] + [1] * 5 + [0] * 2 + [1] * 3 + [0] * 4, [0] * 2 + [1] * 16]
    length = max(map(len, rows)) + 3
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    types = torch.tensor([row + [0] * (length - len(row)) for row in rows]).int()
    expected, _ = layouts()[layout].get_rope_index(
        torch.zeros_like(mask), mm_token_type_ids=types, image_grid_thw=grids, attention_mask=mask
    )
    assert torch.equal(compute_mrope_positions(types, mask, grids, 2), expected)
    alone = compute_mrope_positions(types[:1], mask[:1], None, 2)
    assert torch.equal(alone[:, 0, :9], torch.arange(9).expand(3, 9))


def test_a_chunk_carries_its_positions(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = fresh(config).eval()
    encoder = embedder.encoder()
    pictures = [Image.new("RGB", size, "red") for size in ((112, 112), (64, 200))]
    rows = [
        encoder.encode_query("a", "Find.", "a dog", pictures[0]),
        encoder.encode_query("b", "Find.", "", pictures[1], written="so"),
    ]
    chunk = encoder.make_chunk([*rows, encoder.encode_candidate("c", "a text", None)])
    expected, _ = embedder.model.model.get_rope_index(
        **{name: value for name, value in chunk.inputs.items() if name not in {"pixel_values", "position_ids"}}
    )
    assert torch.equal(chunk.inputs["position_ids"], expected)
    monkeypatch.setattr(embedder.model.model, "get_rope_index", None)  # must not be called again
    with torch.no_grad():
        embedder(chunk)


def test_a_prepared_picture_gives_the_same_inputs(config: TrainConfig) -> None:
    """Among prepared pictures, and among decoded ones."""
    encoder, rng = fresh(config).encoder(), np.random.default_rng(3)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)) for height, width in ((60, 90), (60, 90), (300, 40))
    ]
    whole = [encoder.encode_query(f"q{n}", "Find.", "a dog", picture) for n, picture in enumerate(pictures)]
    early = [encoder.encode_query(f"q{n}", "Find.", "a dog", encoder.prepare(picture)) for n, picture in enumerate(pictures)]
    for rows in (early, [early[0], whole[1], early[2]]):
        found, wanted = encoder.make_chunk(rows), encoder.make_chunk(whole)
        assert found.inputs.keys() == wanted.inputs.keys()
        assert all(torch.equal(found.inputs[name], wanted.inputs[name]) for name in wanted.inputs)
