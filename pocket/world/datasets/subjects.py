"""Which entities a split's questions are about, and what in them no training query has."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from pocket.world.encyclopedia import Entity, encyclopedia
from pocket.world.ground_truth import Unseen
from pocket.world.passages import Question
from schemas.mbeir import Split

HELD_OUT_SHARE: Final = 0.35
"""Share of a test split's questions that are about entities held out from training."""


def sample_entity(split: Split, rng: random.Random, *, further: Sequence[Entity] = ()) -> Entity:
    """Draws a pictured entity, or one of `further`. Entities held out appear in test questions only."""
    world = encyclopedia()
    if split == "test" and rng.random() < HELD_OUT_SHARE:
        return rng.choice(world.held_out)
    return rng.choice([*world.familiar, *further])


def unseen(entity: Entity, question: Question | None = None) -> Unseen:
    """Says what no training query has: the entity, or else the question (training never asks who rules a town)."""
    world = encyclopedia()
    if entity in world.held_out:
        return "entity"
    asks_ruler = question is not None and question.topic == "town" and question.answer == world.towns[question.subject].ruler
    return "question" if asks_ruler else ""
