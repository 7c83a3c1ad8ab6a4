"""Adaptive embeddings equal those of the training pass, for any neighbours, routes and order."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from schemas.training import AdaptiveSettings, Pooling, TrainConfig
from tests.trainer.conftest import fresh, mixed_routes
from trainer.data.encoding import EncodedSequence, SequenceEncoder
from trainer.embedding.query_embedding import QueryEmbedding
from trainer.embedding.transformers_engine import AdaptiveEmbedder
from trainer.model.embedder import Embedder

WORDS = ("red", "a small circle at the top and a ring", "blue", "two squares", "night", "the home of the bird", "what is it")


def some_rows(encoder: SequenceEncoder) -> list[EncodedSequence]:
    pictures = [Image.new("RGB", (112, 112 + 28 * (i % 2)), color) for i, color in enumerate(("red", "blue", "green"))]
    return [
        encoder.encode_query(f"q{i}", "Find it.", text, pictures[i % 3] if i % 2 else None, written="")
        for i, text in enumerate(WORDS)
    ]


def embedded(
    embedder: Embedder,
    rows: list[EncodedSequence],
    route: str = "always-reason",
    given: list[bool] | None = None,
    **settings: int,
) -> list[QueryEmbedding]:
    known = AdaptiveSettings(**({"max_new_tokens": 9} | settings))
    return AdaptiveEmbedder(embedder, known).embed(rows, route=route, given=given)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["pre", "token"])
@pytest.mark.parametrize("route", ["learned", "always-direct", "always-reason", "given"])
def test_neighbours_and_lanes_change_no_embedding(config: TrainConfig, pool: Pooling, route: str) -> None:
    embedder = fresh(config, pooling=pool).eval()
    rows = some_rows(embedder.encoder())
    given = [i % 3 == 0 for i in range(len(rows))] if route == "given" else None
    if route == "learned":
        mixed_routes(embedder, rows)
    together = embedded(embedder, rows, route, given)
    for settings in ({"prefill_rows": 1, "decode_rows": 1}, {"prefill_rows": 3, "decode_rows": 2}):
        apart = embedded(embedder, rows, route, given, **settings)
        for one, other in zip(together, apart, strict=True):
            assert (one.trace, one.tokens, one.reasoned, one.ended) == (other.trace, other.tokens, other.reasoned, other.ended)
            assert torch.allclose(one.vector, other.vector, atol=2e-6)
    if given is not None:
        assert [one.reasoned for one in together] == given
    if route == "learned":
        assert {one.reasoned for one in together} == {True, False}
    assert all(one.reasoned for one in together) or route != "always-reason"
    assert not any(one.reasoned for one in together) or route != "always-direct"


@pytest.mark.parametrize("pool", ["pre", "token"])
@pytest.mark.parametrize("route", ["always-direct", "always-reason"])
def test_embeddings_equal_those_of_the_training_pass(config: TrainConfig, pool: Pooling, route: str) -> None:
    """The training pass over the generated traces gives the same states."""
    embedder = fresh(config, pooling=pool).eval()
    encoder = embedder.encoder()
    rows = some_rows(encoder)
    for row, found in zip(rows, embedded(embedder, rows, route), strict=True):
        ids = encoder.tokenise(found.trace)
        if len(ids) != found.tokens:  # a random model may write bytes that are not text
            continue
        with torch.no_grad():
            vectors, _ = embedder(encoder.make_chunk([EncodedSequence(row.name, row.prompt, row.pictures, found.trace)]))
        assert torch.allclose(found.vector, vectors[0], atol=2e-6)


def test_a_trace_that_does_not_end_is_cut_and_counted(config: TrainConfig) -> None:
    embedder = fresh(config).eval()
    rows = some_rows(embedder.encoder())
    short, long = embedded(embedder, rows, max_new_tokens=2), embedded(embedder, rows, max_new_tokens=6)
    assert all(one.tokens <= 2 for one in short)
    cut = [i for i, one in enumerate(short) if not one.ended]
    assert cut
    for i in cut:
        assert short[i].tokens == 2
        assert long[i].trace.startswith(short[i].trace)
        assert abs(float(short[i].vector.norm()) - 1) < 1e-5


def test_the_route_is_the_first_token(config: TrainConfig) -> None:
    """Moving the embedding token's row along the bypass states turns every route into a bypass."""
    embedder = fresh(config).eval()
    rows = some_rows(embedder.encoder())
    before = embedded(embedder, rows, "learned")
    assert [one.p_direct > 0.5 for one in before] == [False] * len(rows)
    delta = next(p for name, p in embedder.named_parameters() if "trainable_tokens_delta" in name)
    direct = embedded(embedder, rows, "always-direct")
    mean = torch.stack([one.vector for one in direct]).mean(0)
    with torch.no_grad():
        delta += 50 * mean
    after = embedded(embedder, rows, "learned")
    assert [one.reasoned for one in after] == [False] * len(rows)
    for one, other in zip(after, direct, strict=True):
        assert torch.allclose(one.vector, other.vector, atol=2e-6)
        assert one.p_direct > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["pre", "token"])
def test_confidence_is_the_mean_log_probability_of_the_trace(config: TrainConfig, pool: Pooling) -> None:
    """As the training pass over the same trace gives it; the first token's among those that begin a trace."""
    embedder = fresh(config, pooling=pool).eval()
    encoder = embedder.encoder()
    rows = some_rows(encoder)
    checked = 0
    for row, found in zip(rows, embedded(embedder, rows), strict=True):
        if len(encoder.tokenise(found.trace)) != found.tokens:
            continue
        chunk = encoder.make_chunk([EncodedSequence(row.name, row.prompt, row.pictures, found.trace, labelled=True)])
        labels = chunk.labels[0]
        places = (labels != -100).nonzero().flatten()[:-1]  # all but the embedding token
        with torch.no_grad():
            logits = embedder.head(embedder.states(chunk)[0, places]).float()
        stops = {embedder.processor.tokenizer.eos_token_id, embedder.model.generation_config.eos_token_id} - {None}
        logits[0, [embedder.emb_id, *stops]] = -1e9
        wanted = logits.log_softmax(-1).gather(1, labels[places].unsqueeze(1)).mean()
        assert found.confidence == pytest.approx(float(wanted), abs=1e-4)
        checked += 1
    assert checked
    assert [one.confidence for one in embedded(embedder, rows, "always-direct")] == [None] * len(rows)


def test_confidence_does_not_depend_on_who_chose_the_route(config: TrainConfig) -> None:
    embedder = fresh(config).eval()
    rows = some_rows(embedder.encoder())
    mixed_routes(embedder, rows)
    pairs = zip(embedded(embedder, rows, "learned"), embedded(embedder, rows), strict=True)
    thinking = [(one, forced) for one, forced in pairs if one.reasoned]
    assert thinking
    for one, forced in thinking:
        assert one.confidence == pytest.approx(forced.confidence, abs=1e-5)


def test_a_query_falls_back_below_the_threshold(config: TrainConfig) -> None:
    embedder = fresh(config).eval()
    rows = some_rows(embedder.encoder())
    mixed_routes(embedder, rows)
    found = embedded(embedder, rows, "learned")
    direct = embedded(embedder, rows, "always-direct")
    sure = sorted(one.confidence for one in found if one.confidence is not None)
    for threshold in (None, sure[0], sure[-1], 0.0):
        for before, bypass in zip(found, direct, strict=True):
            after = before.fall_back(threshold)
            low = threshold is not None and before.confidence is not None and before.confidence < threshold
            assert after.fell_back == low
            assert (after.reasoned, after.trace, after.tokens) == (before.reasoned, before.trace, before.tokens)
            assert torch.allclose(after.vector, bypass.vector if low else before.vector, atol=2e-6)
    assert sum(one.fall_back(0.0).fell_back for one in found) == len(sure) > 0
    settings = config.model_dump() | {"adaptive": {"fallback": -0.5}}
    assert TrainConfig.model_validate(settings).adaptive.fallback == -0.5
    with pytest.raises(ValidationError, match="need model.pooling: pre"):
        TrainConfig.model_validate(settings | {"model": config.model.model_dump() | {"pooling": "token"}})


def test_given_routes_need_one_flag_per_row(config: TrainConfig) -> None:
    embedder = fresh(config)
    with pytest.raises(ValueError, match="one flag per sequence"):
        embedded(embedder, some_rows(embedder.encoder()), "given", [True])
