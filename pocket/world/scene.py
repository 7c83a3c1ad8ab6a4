"""Scenes: one to four coloured shapes on a grid of nine cells, and partial claims about them."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Final

from pocket.world.lexicon import CELLS, COLOURS, SETTINGS, SHAPES, SIZES

RELATIONS: Final = ("left of", "right of", "above", "below")


@dataclass(frozen=True, slots=True)
class Thing:
    size: str
    colour: str
    shape: str
    cell: int

    @property
    def row(self) -> int:
        return self.cell // 3

    @property
    def column(self) -> int:
        return self.cell % 3

    @property
    def noun(self) -> str:
        """``large red circle``."""
        return f"{self.size} {self.colour} {self.shape}"

    def __str__(self) -> str:
        return f"{self.noun} {CELLS[self.cell]}"


@dataclass(frozen=True, slots=True)
class Scene:
    """A setting and things in the order of their cells, at most one per cell."""

    things: tuple[Thing, ...]
    setting: str

    @classmethod
    def of(cls, things: list[Thing] | tuple[Thing, ...], setting: str) -> Scene:
        return cls(tuple(sorted(things, key=lambda thing: thing.cell)), setting)

    @property
    def canonical(self) -> str:
        """``large red circle top left, small blue square bottom, night``: equal for equal scenes only."""
        return f"{', '.join(map(str, self.things))}, {self.setting}"

    @property
    def free_cells(self) -> list[int]:
        taken = {thing.cell for thing in self.things}
        return [cell for cell in range(9) if cell not in taken]


def sample_scene(rng: random.Random, *, least: int = 1, most: int = 4, repeat: float = 0.25) -> Scene:
    """Draws a scene; with probability `repeat` a further thing copies the look of an earlier one, so that counts matter."""
    cells = rng.sample(range(9), rng.randint(least, most))
    things: list[Thing] = []
    for cell in cells:
        if things and rng.random() < repeat:
            model = rng.choice(things)
            things.append(Thing(model.size, model.colour, model.shape, cell))
        else:
            things.append(Thing(rng.choice(SIZES), rng.choice(list(COLOURS)), rng.choice(SHAPES), cell))
    return Scene.of(things, rng.choice(list(SETTINGS)))


def related(a: Thing, relation: str, b: Thing) -> bool:
    """Whether `a` is strictly `relation` `b`."""
    match relation:
        case "left of":
            return a.column < b.column
        case "right of":
            return a.column > b.column
        case "above":
            return a.row < b.row
        case _:
            return a.row > b.row


def relation_between(a: Thing, b: Thing, rng: random.Random) -> str:
    """Draws a relation that holds from `a` to `b`; there always is one, because their cells differ."""
    return rng.choice([relation for relation in RELATIONS if related(a, relation, b)])


@dataclass(frozen=True, slots=True)
class Partial:
    """What a text says about one thing; None for what it leaves open."""

    shape: str
    colour: str | None = None
    size: str | None = None
    cell: int | None = None

    def fits(self, thing: Thing) -> bool:
        return (
            self.shape == thing.shape
            and self.colour in (None, thing.colour)
            and self.size in (None, thing.size)
            and self.cell in (None, thing.cell)
        )


@dataclass(frozen=True, slots=True)
class Claim:
    """What a text says about a scene: it mentions every thing, but perhaps not every attribute.

    `relations` holds (index, relation, index) between mentioned things.
    """

    things: tuple[Partial, ...]
    relations: tuple[tuple[int, str, int], ...] = ()
    setting: str | None = None

    def matches(self, scene: Scene) -> bool:
        """Whether the text is true of the scene."""
        if len(scene.things) != len(self.things) or self.setting not in (None, scene.setting):
            return False
        return any(self._holds(order) for order in itertools.permutations(scene.things))

    def _holds(self, order: tuple[Thing, ...]) -> bool:
        return all(partial.fits(thing) for partial, thing in zip(self.things, order, strict=True)) and all(
            related(order[a], relation, order[b]) for a, relation, b in self.relations
        )
