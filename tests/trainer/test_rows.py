from __future__ import annotations

import pytest
import torch
from PIL import Image

from schemas.training import Pooling, TrainConfig
from tests.trainer.conftest import fresh
from trainer.rows import IGNORE, Row


@pytest.mark.parametrize("pool", ["pre", "token"])
def test_what_is_learnt_and_where_the_embedding_is_read(config: TrainConfig, pool: Pooling) -> None:
    embedder = fresh(config, pool=pool)
    encoder, tokenizer = embedder.encoder(), embedder.processor.tokenizer
    picture = Image.new("RGB", (112, 112), "red")
    reasons = encoder.query("q1", "Find it.", "a dog", picture, written="Answer: a dog", labelled=True)
    bypass = encoder.query("q2", "Find it.", "a dog", None, labelled=True)
    chunk = encoder.chunk([reasons, bypass, encoder.candidate("d", "a dog", None)])
    for i, written in enumerate(("Answer: a dog", "")):
        learnt = chunk.labels[i] != IGNORE
        assert tokenizer.decode(chunk.labels[i][learnt]) == written + "<|emb|>"
        first = int(learnt.nonzero()[0])
        # each label stands at the position before its token
        follows = chunk.inputs["input_ids"][i, first + 1 : first + int(learnt.sum())]
        assert follows.tolist() == chunk.labels[i][learnt][:-1].tolist()
        last = int(chunk.last[i])
        ends_in_token = int(chunk.inputs["input_ids"][i, last]) == embedder.emb_id
        assert ends_in_token == (pool == "token")
        predicts_token = int(chunk.labels[i, last]) == embedder.emb_id
        assert predicts_token == (pool == "pre")
    assert not (chunk.labels[2] != IGNORE).any()
    assert int(chunk.inputs["attention_mask"][1].sum()) == int(chunk.last[1]) + 1


def test_chunks_keep_to_their_bounds_and_every_row_has_its_place(config: TrainConfig) -> None:
    encoder = fresh(config).encoder()
    picture = Image.new("RGB", (112, 112), "red")
    rows = [encoder.query(f"q{i}", "Find.", "word " * i, picture if i % 2 else None) for i in range(7)]
    rows.append(Row("extra", rows[0].prompt, rows[0].pictures, "trace", labelled=True, pooled=False))
    each = encoder._patches(rows[1])
    chunks = encoder.chunks(rows, size=3, patches=2 * each)
    assert all(len(chunk) <= 3 for chunk in chunks)
    assert all(len(chunk.inputs.get("image_grid_thw", ())) <= 2 for chunk in chunks)
    placed = {name: int(place) for chunk in chunks for name, place in zip(chunk.names, chunk.places, strict=True)}
    assert placed == {f"q{i}": i for i in range(7)} | {"extra": -1}


def test_padding_and_neighbours_change_no_embedding(config: TrainConfig) -> None:
    embedder = fresh(config).eval()
    encoder = embedder.encoder()
    picture = Image.new("RGB", (112, 112), "blue")
    rows = [encoder.query(f"q{i}", "Find.", "word " * (3 * i), picture if i % 2 else None, written="so " * i) for i in range(5)]
    with torch.no_grad():
        together, _ = embedder(encoder.chunk(rows))
        for i, row in enumerate(rows):
            alone, _ = embedder(encoder.chunk([row]))
            assert torch.allclose(alone[0], together[i], atol=2e-6)
