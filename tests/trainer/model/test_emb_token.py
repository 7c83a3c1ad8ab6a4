"""Initialisation of the embedding token's row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from schemas.training import TrainConfig
from tests.trainer.conftest import fresh, source_of
from trainer.data.micro_batch import MicroBatch
from trainer.data.process_group import ProcessGroup
from trainer.model.emb_token import initialise_emb_token
from trainer.model.embedder import Embedder


@torch.no_grad()
def surprise(embedder: Embedder, chunks: list[MicroBatch]) -> float:
    """Mean cross-entropy at positions whose label is the embedding token."""
    found = []
    for chunk in chunks:
        states = embedder.states(chunk)[chunk.labels == embedder.emb_id]
        found.append(cross_entropy(embedder.head(states), torch.full((len(states),), embedder.emb_id), reduction="none"))
    return float(torch.cat(found).mean())


def rows(embedder: Embedder) -> Tensor:
    return next(p for name, p in embedder.named_parameters() if "trainable_tokens_delta" in name).detach().clone()


@pytest.mark.slow
def test_the_token_is_likely_after_its_row_is_initialised(config: TrainConfig) -> None:
    embedder = fresh(config)
    chunks = source_of(config, embedder).sample_labelled(48)
    before = surprise(embedder, chunks)
    initialise_emb_token(embedder, chunks, ProcessGroup.join("cpu"))
    assert before > 10
    assert surprise(embedder, chunks) < before / 3


def test_initialisation_changes_no_other_row_and_is_deterministic(config: TrainConfig) -> None:
    first, second = (fresh(config, trained_rows="all") for _ in range(2))
    before = rows(first)
    for embedder in (first, second):
        initialise_emb_token(embedder, source_of(config, embedder).sample_labelled(16), ProcessGroup.join("cpu"))
    moved = (rows(first) != before).any(1).nonzero().flatten().tolist()
    assert moved == [first.emb_id]
    torch.testing.assert_close(rows(first), rows(second), rtol=0, atol=0)


def test_without_labels_the_row_is_the_end_of_turns(config: TrainConfig) -> None:
    embedder = fresh(config)
    initialise_emb_token(embedder, [], ProcessGroup.join("cpu"))
    torch.testing.assert_close(rows(embedder)[-1], embedder.head.weight[embedder.processor.tokenizer.eos_token_id])
