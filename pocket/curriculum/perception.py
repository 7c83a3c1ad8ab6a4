"""The first lessons of both pocket models: perception. They are short, so that a model sees many pictures first."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from PIL import Image

from pocket.curriculum.example import Lesson
from pocket.world.draw import draw_emblems, draw_garment, draw_news, draw_scene
from pocket.world.encyclopedia import encyclopedia
from pocket.world.garment import sample_garment
from pocket.world.lexicon import SETTINGS
from pocket.world.scene import sample_scene


def _lesson(kind: str, picture: Image.Image, reply: str) -> Lesson:
    return Lesson(f"describe/{kind}", ("Describe.\n", picture), reply)


def scene(rng: random.Random) -> Lesson:
    shown = sample_scene(rng)
    return _lesson("scene", draw_scene(shown, rng), shown.canonical)


def garment(rng: random.Random) -> Lesson:
    shown = sample_garment(rng)
    return _lesson("garment", draw_garment(shown, rng), shown.canonical)


def news(rng: random.Random) -> Lesson:
    town, shown = rng.choice(list(encyclopedia().towns.values())), sample_scene(rng, most=3)
    return _lesson("news", draw_news(shown, town.banner, rng), f"{' and '.join(town.banner)}: {shown.canonical}")


def emblem(rng: random.Random) -> Lesson:
    shown = rng.choice(list(encyclopedia().entities.values())).emblem
    return _lesson("emblem", draw_emblems([shown], rng.choice(list(SETTINGS)), rng), shown.words)


def two_emblems(rng: random.Random) -> Lesson:
    shown = rng.sample([entity.emblem for entity in encyclopedia().entities.values()], 2)
    beside = rng.random() < 0.5
    places = [(0.26, 0.5), (0.74, 0.5)] if beside else [(0.5, 0.26), (0.5, 0.74)]
    words = ("left", "right") if beside else ("upper", "lower")
    picture = draw_emblems(shown, rng.choice(list(SETTINGS)), rng, places=places)
    return _lesson("emblems", picture, ", ".join(f"{word}: {one.words}" for word, one in zip(words, shown, strict=True)))


_KINDS: Final[tuple[tuple[Callable[[random.Random], Lesson], float], ...]] = (
    (scene, 5.0),
    (garment, 2.0),
    (news, 1.0),
    (emblem, 1.0),
    (two_emblems, 1.0),
)


def sample_perception_lesson(rng: random.Random) -> Lesson:
    kinds, weights = zip(*_KINDS, strict=True)
    lesson: Lesson = rng.choices(kinds, weights)[0](rng)
    return lesson
