"""Retrieval queries as a world has them, but endless and with everything known about them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from pocket.lessons.composed import edited_garment, edited_scene
from pocket.lessons.knowledge import about_picture, picture_by_name, question_by_name, report
from pocket.lessons.known import Known
from pocket.lessons.visual import (
    garment_from_picture,
    garment_from_text,
    news_from_picture,
    news_from_text,
    scene_from_picture,
    scene_from_text,
)

KINDS: Final[tuple[tuple[Callable[[random.Random], Known], float], ...]] = (
    (edited_scene, 5.0),
    (edited_garment, 2.5),
    (about_picture, 4.0),
    (question_by_name, 1.5),
    (picture_by_name, 0.8),
    (report, 0.8),
    (scene_from_text, 1.2),
    (scene_from_picture, 1.5),
    (news_from_text, 1.0),
    (news_from_picture, 1.2),
    (garment_from_text, 0.7),
    (garment_from_picture, 1.0),
)
"""Every kind of query with its share among the lessons."""


def sample_known(rng: random.Random) -> Known:
    kinds, weights = zip(*KINDS, strict=True)
    known: Known = rng.choices(kinds, weights)[0](rng)
    return known
