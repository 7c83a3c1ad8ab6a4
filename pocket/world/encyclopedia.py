"""The knowledge of the world: invented entities, towns and persons with facts that no picture shows.

The encyclopedia is the same in every world, whatever its seed, so that a teacher can know it. Worlds differ in pictures and
questions.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import Final

from pocket.world.lexicon import COLOURS, CRAFTS, GOODS, REGIONS, SEASONS, article

KINDS: Final[dict[str, str]] = {
    "bird": "triangle",
    "flower": "circle",
    "tower": "square",
    "fish": "diamond",
    "fruit": "heart",
    "lamp": "star",
}
"""Kind of entity -> the outer shape of its emblem."""

INNER_SHAPES: Final = ("circle", "square", "triangle", "cross", "ring")
PICTURED: Final = 64
"""Number of entities that query images show; the others are in passages and pools only."""

HELD_OUT: Final = 16
"""Number of pictured entities that only test queries are about."""

ENTITIES: Final = 224
_UNIVERSE_SEED: Final = 20_260_302  # a constant, because the pocket models have learnt this encyclopedia


@dataclass(frozen=True, slots=True)
class Emblem:
    """The look of an entity: a coloured shape around a smaller one."""

    outer: str
    outer_colour: str
    inner: str
    inner_colour: str

    @property
    def words(self) -> str:
        """``red triangle around a white ring``."""
        return f"{self.outer_colour} {self.outer} around {article(f'{self.inner_colour} {self.inner}')}"


@dataclass(frozen=True, slots=True)
class Town:
    name: str
    banner: tuple[str, str]
    region: str
    river: str
    ruler: str


@dataclass(frozen=True, slots=True)
class Person:
    name: str
    craft: str
    birthplace: str


@dataclass(frozen=True, slots=True)
class Entity:
    name: str
    kind: str
    emblem: Emblem
    home: str
    finder: str
    season: str
    good: str
    pictured: bool

    @property
    def canonical(self) -> str:
        return f"{self.name}, {self.kind}"


@dataclass(frozen=True, slots=True)
class Encyclopedia:
    towns: dict[str, Town]
    persons: dict[str, Person]
    entities: dict[str, Entity]

    @property
    def pictured(self) -> list[Entity]:
        return [entity for entity in self.entities.values() if entity.pictured]

    @property
    def held_out(self) -> list[Entity]:
        """Pictured entities that only test queries are about."""
        return self.pictured[:: PICTURED // HELD_OUT]

    @property
    def familiar(self) -> list[Entity]:
        """Pictured entities that training queries are about too."""
        return [entity for number, entity in enumerate(self.pictured) if number % (PICTURED // HELD_OUT)]

    def home_of(self, entity: Entity) -> Town:
        return self.towns[entity.home]

    def finder_of(self, entity: Entity) -> Person:
        return self.persons[entity.finder]


_HEADS: Final = ("bar", "cor", "dal", "fen", "gil", "hol", "jun", "kes", "lum", "mar", "nor", "pel", "ros", "sil", "tam", "vel")
_MIDDLES: Final = ("a", "e", "i", "o", "u")
_TAILS: Final = ("bo", "da", "fi", "go", "ka", "la", "mo", "na", "po", "ra", "so", "ta", "vi", "za")
_TOWN_TAILS: Final = ("den", "ford", "mouth", "wick")
_FIRST_NAMES: Final = ("Ada", "Bram", "Cleo", "Dov", "Edda", "Finn")
_LAST_NAMES: Final = ("Holt", "Voss")
_RIVERS: Final = ("Orra", "Lind", "Messa", "Tyne", "Ussel", "Varo")


@cache
def encyclopedia() -> Encyclopedia:
    """Returns the encyclopedia, which is the same for all worlds."""
    rng = random.Random(_UNIVERSE_SEED)  # noqa: S311 (a generator of synthetic data, here and everywhere in this package)
    persons_names = [f"{first} {last}" for first in _FIRST_NAMES for last in _LAST_NAMES]
    heads = rng.sample(_HEADS, 12)
    town_names = [f"{head}{_TOWN_TAILS[i % 4]}".capitalize() for i, head in enumerate(heads)]
    banners = rng.sample([(a, b) for a in COLOURS for b in COLOURS if a != b], len(town_names))
    rulers = rng.sample(persons_names, len(town_names))
    towns = {
        name: Town(name, banner, REGIONS[i % 4], _RIVERS[i % len(_RIVERS)], ruler)
        for i, (name, banner, ruler) in enumerate(zip(town_names, banners, rulers, strict=True))
    }
    births = rng.sample(town_names, len(persons_names))
    persons = {
        name: Person(name, CRAFTS[i % len(CRAFTS)], birth)
        for i, (name, birth) in enumerate(zip(persons_names, births, strict=True))
    }
    names = rng.sample([f"{h}{m}{t}" for h in _HEADS for m in _MIDDLES for t in _TAILS], ENTITIES)
    emblems = _emblems(rng)
    entities = {}
    for i, (name, (kind, emblem)) in enumerate(zip(names, emblems, strict=True)):
        facts = rng.choice(town_names), rng.choice(persons_names), rng.choice(SEASONS), rng.choice(GOODS)
        entities[name] = Entity(name, kind, emblem, *facts, pictured=i < PICTURED)
    return Encyclopedia(towns, persons, entities)


def _emblems(rng: random.Random) -> list[tuple[str, Emblem]]:
    """Draws distinct looks, in families that differ in one attribute, so that entities are easily confused."""
    found: dict[Emblem, str] = {}
    while len(found) < ENTITIES:
        kind = rng.choice(list(KINDS))
        outer_colour, inner_colour = rng.sample(list(COLOURS), 2)
        inner = rng.choice([shape for shape in INNER_SHAPES if shape != KINDS[kind]])
        found.setdefault(Emblem(KINDS[kind], outer_colour, inner, inner_colour), kind)
        third = rng.choice([colour for colour in COLOURS if colour not in (outer_colour, inner_colour)])
        if len(found) < ENTITIES:
            found.setdefault(Emblem(KINDS[kind], outer_colour, inner, third), kind)
    return [(kind, emblem) for emblem, kind in found.items()]
