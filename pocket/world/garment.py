"""Garments: a kind, a colour, a pattern, a length and perhaps a trim; and partial claims about them."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

from pocket.world.lexicon import COLOURS, GARMENT_KINDS, LENGTHS, PATTERNS, other


@dataclass(frozen=True, slots=True)
class Garment:
    """A garment. `trim` is the colour of hem, belt or band; None if it has none."""

    kind: str
    colour: str
    pattern: str
    length: str
    trim: str | None

    @property
    def canonical(self) -> str:
        """``long red striped dress, white trim``: equal for equal garments only."""
        return f"{self.length} {self.colour} {self.pattern} {self.kind}, {self.trim or 'no'} trim"


def sample_garment(rng: random.Random) -> Garment:
    colour = rng.choice(list(COLOURS))
    trim = None if rng.random() < 0.35 else other(list(COLOURS), colour, rng=rng)
    return Garment(rng.choice(GARMENT_KINDS), colour, rng.choice(PATTERNS), rng.choice(LENGTHS), trim)


@dataclass(frozen=True, slots=True)
class GarmentClaim:
    """What a text says about a garment; None for what it leaves open. `trim` is ``"no"`` if it denies one."""

    kind: str
    colour: str | None = None
    pattern: str | None = None
    length: str | None = None
    trim: str | None = None

    def matches(self, garment: Garment) -> bool:
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        held = {field.name: getattr(garment, field.name) for field in fields(garment)}
        held["trim"] = held["trim"] or "no"
        return all(value is None or value == held[name] for name, value in said.items())
