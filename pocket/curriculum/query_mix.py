"""The mix of retrieval queries: as in a world, but endless and with everything known about them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Final

from pocket.curriculum.composed import edited_garment, edited_scene
from pocket.curriculum.knowledge import about_picture, picture_by_name, question_by_name, report
from pocket.curriculum.solved_query import SolvedQuery
from pocket.curriculum.visual import (
    garment_from_picture,
    garment_from_text,
    news_from_picture,
    news_from_text,
    scene_from_picture,
    scene_from_text,
)

KINDS: Final[dict[Callable[[random.Random], SolvedQuery], float]] = {
    edited_scene: 5.0,
    edited_garment: 2.5,
    about_picture: 4.0,
    question_by_name: 1.5,
    picture_by_name: 0.8,
    report: 0.8,
    scene_from_text: 1.2,
    scene_from_picture: 1.5,
    news_from_text: 1.0,
    news_from_picture: 1.2,
    garment_from_text: 0.7,
    garment_from_picture: 1.0,
}
"""Share of each kind of query among the lessons."""

JUDGED: Final = KINDS | {edited_scene: 3.0, edited_garment: 1.5, about_picture: 3.0, question_by_name: 2.0, report: 1.5}
"""Their shares in judging lessons, where all kinds are equally hard."""


def sample_known(rng: random.Random, kinds: Mapping[Callable[[random.Random], SolvedQuery], float] = KINDS) -> SolvedQuery:
    known: SolvedQuery = rng.choices(list(kinds), list(kinds.values()))[0](rng)
    return known
