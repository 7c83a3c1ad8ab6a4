"""Trace dropout: a share of the reasoning queries is contrasted by its bypass embedding, and still learns trace and route."""

from __future__ import annotations

from typing import Final

import pytest
import torch

from schemas.training import Pooling, TrainConfig, Variant
from tests.trainer.conftest import fresh, source_of
from trainer.data.batches import BatchSource
from trainer.data.micro_batch import IGNORE
from trainer.model.embedder import Embedder


def dropping(config: TrainConfig, embedder: Embedder, share: float, *, contrastive: str = "teacher") -> BatchSource:
    traces = config.traces.model_copy(update={"dropout": share, "contrastive": contrastive})
    return source_of(config.model_copy(update={"traces": traces}), embedder)


ALWAYS: Final = 0.999_999


@pytest.mark.parametrize("pool", ["pre", "token"])
def test_the_embedding_is_that_of_a_bypass_and_the_labels_stay(config: TrainConfig, pool: Pooling) -> None:
    embedder = fresh(config, pooling=pool).eval()
    plain, source = dropping(config, embedder, 0.0), dropping(config, embedder, ALWAYS)
    for number in (2, 5):  # of the records, every third reasons
        item = source.records.item(number)
        assert item.reasons
        dropped = source.encode_query(item, 0)
        assert len(dropped) == (1 if pool == "pre" else 2)
        (pooled,), (labelled,) = ([s for s in dropped if s.pooled], [s for s in dropped if s.labelled])
        (usual,) = plain.encode_query(item, 0)
        with torch.no_grad():
            vector, _ = embedder(source.encoder.make_chunk([pooled]))
            _, loss = embedder(source.encoder.make_chunk([labelled]))
            bypass, _ = embedder(source.encoder.make_chunk([source.encode_prompt(item)]))
            after_trace, usual_loss = embedder(source.encoder.make_chunk([usual]))
        assert torch.allclose(vector, bypass, atol=2e-6)
        assert not torch.allclose(vector, after_trace, atol=1e-2)
        assert torch.equal(loss, usual_loss)
        labels = source.encoder.make_chunk([labelled]).labels[0]
        learnt = labels[labels != IGNORE].tolist()
        assert learnt == [
            *source.encoder.tokenise(item.trace),
            embedder.emb_id,
        ]  # so the route's label is the trace's first token


def test_a_share_of_the_reasoning_queries_is_dropped_anew_each_epoch(config: TrainConfig) -> None:
    embedder = fresh(config)
    source = dropping(config, embedder, 0.4)
    items = [source.records.item(number) for number in range(len(source.records))]
    epochs = 60
    drawn = {item.id: [source.encode_query(item, epoch)[0].at_prompt for epoch in range(epochs)] for item in items}
    reasoning = [drawn[item.id] for item in items if item.reasons]
    share = sum(map(sum, reasoning)) / (epochs * len(reasoning))
    assert share == pytest.approx(0.4, abs=0.05)
    assert all(0 < sum(of_query) < epochs for of_query in reasoning)
    assert not any(any(drawn[item.id]) for item in items if not item.reasons)
    assert [source.encode_query(items[2], epoch)[0].at_prompt for epoch in range(epochs)] == drawn[items[2].id]


@pytest.mark.parametrize("variant", ["direct", "always-reason"])
def test_controls_drop_nothing(config: TrainConfig, variant: Variant) -> None:
    source = dropping(config, fresh(config), ALWAYS)
    source.variant = variant
    assert not any(
        sequence.at_prompt for number in range(12) for sequence in source.encode_query(source.records.item(number), 0)
    )


def test_dropped_queries_need_no_trace_of_their_own(config: TrainConfig) -> None:
    """The student writes none for them, and they take one sequence where the others take two."""
    embedder = fresh(config)
    everyone = dropping(config, embedder, 0.0, contrastive="own").list_reasoning(0, 3)
    source = dropping(config, embedder, 0.5, contrastive="own")
    wanted = source.list_reasoning(0, 3)
    assert 0 < len(wanted) < len(everyone)
    assert set(wanted) < set(everyone)
    for index in everyone:
        item = source.records.item(index)
        source.own[item.id] = "Answer: of its own"
        assert len(source.encode_query(item, 0)) == (2 if index in wanted else 1)
