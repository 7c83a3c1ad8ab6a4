"""The words of the world: one canonical word for each thing; only queries and captions use synonyms."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, TypeVar

T = TypeVar("T")

COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (214, 30, 34),
    "orange": (255, 140, 10),
    "yellow": (252, 226, 40),
    "green": (24, 150, 62),
    "blue": (28, 82, 222),
    "purple": (146, 52, 190),
    "white": (252, 252, 252),
    "black": (16, 16, 18),
}
SHAPES: Final = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart")
SIZES: Final = ("small", "large")
SETTINGS: Final[dict[str, tuple[int, int, int]]] = {
    "day": (186, 214, 236),
    "dusk": (216, 176, 158),
    "night": (84, 90, 122),
    "meadow": (178, 204, 148),
}

CELLS: Final = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
"""Cell number -> name; row by row."""

SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "small": ("small", "little", "tiny"),
    "large": ("large", "big"),
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
    "diamond": ("diamond", "rhombus"),
}

SETTING_PHRASES: Final[dict[str, tuple[str, ...]]] = {
    "day": ("in daylight", "by day"),
    "dusk": ("at dusk", "at sunset"),
    "night": ("at night", "after dark"),
    "meadow": ("on a meadow", "over green grass"),
}

NUMBERS: Final = ("no", "one", "two", "three", "four")

GARMENT_KINDS: Final = ("dress", "shirt", "skirt", "coat", "trousers", "hat")
PATTERNS: Final = ("plain", "striped", "dotted", "checked")
LENGTHS: Final = ("short", "long")
PATTERN_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
    "checked": ("checked", "chequered"),
}

WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WITNESSES: Final = ("visitors", "neighbours", "children", "reporters", "traders", "officials", "students", "farmers")
EVENTS: Final = ("parade", "storm", "market", "flood", "election", "harvest", "concert", "strike")
REGIONS: Final = ("the north", "the south", "the east", "the west")
SEASONS: Final = ("spring", "summer", "autumn", "winter")
GOODS: Final = ("salt", "honey", "silk", "amber", "copper", "ink", "oil", "wool")
CRAFTS: Final = ("potter", "sailor", "painter", "weaver", "smith", "baker", "poet", "healer")


def say(word: str, rng: random.Random) -> str:
    """Draws the word or a synonym of it."""
    return rng.choice(SYNONYMS.get(word, (word,)))


def article(phrase: str) -> str:
    """``red circle`` -> ``a red circle``."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plural(noun: str) -> str:
    return noun if noun.endswith("trousers") else f"{noun}{'es' if noun.endswith(('s', 'x', 'ss')) else 's'}"


def listing(phrases: Sequence[str]) -> str:
    """``a, b and c``."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def other(choices: Sequence[T], *than: T, rng: random.Random) -> T:
    """Draws one of `choices` that is none of `than`."""
    return rng.choice([choice for choice in choices if choice not in than])
