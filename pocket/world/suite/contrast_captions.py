"""A caption beside a wrong one: what SugarCrepe's seven parts and CC-Neg ask."""

from __future__ import annotations

import random
from typing import Final

from pocket.world.lexicon import CELLS, article
from pocket.world.scene import Scene, Thing, relation_between
from pocket.world.suite.crowded_scenes import another, noun

PARTS: Final = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
_OPPOSITE: Final = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_SPOKEN: Final = {"left of": "to the left of", "right of": "to the right of"}


def contrast(part: str, scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    """(caption, negative caption): the first is true of the scene, the second is not. None where it offers none."""
    a, b = rng.sample(scene.things, 2)
    looks = [(one.colour, one.shape) for one in scene.things]
    if a.colour == b.colour or a.shape == b.shape or len(set(looks)) < len(looks):
        return None
    return _made(part, scene, a, b, rng)


def _made(part: str, scene: Scene, a: Thing, b: Thing, rng: random.Random) -> tuple[str, str] | None:
    first, second = (f"{one.colour} {one.shape}" for one in (a, b))
    relation = relation_between(a, b, rng)
    where = _SPOKEN.get(relation, relation)
    right = f"{article(first)} {where} {article(second)}"
    there = {(one.colour, one.shape) for one in scene.things}
    match part:
        case "add_att":
            wrong_size = another("size", a.size, rng)
            return (
                f"{article(first)} {where} {article(second)}",
                f"{article(f'{wrong_size} {first}')} {where} {article(second)}",
            )
        case "add_obj":
            colour, shape = another("colour", a.colour, rng), another("shape", a.shape, rng)
            if (colour, shape) in there:
                return None
            return right, f"{right}, beside {article(f'{colour} {shape}')}"
        case "replace_att":
            colour = another("colour", a.colour, rng)
            wrong = (colour, a.shape)
            return None if wrong in there else (right, f"{article(f'{colour} {a.shape}')} {where} {article(second)}")
        case "replace_obj":
            shape = another("shape", a.shape, rng)
            wrong = (a.colour, shape)
            return None if wrong in there else (right, f"{article(f'{a.colour} {shape}')} {where} {article(second)}")
        case "replace_rel":
            turned = _OPPOSITE[relation]
            return right, f"{article(first)} {_SPOKEN.get(turned, turned)} {article(second)}"
        case "swap_att":
            if (b.colour, a.shape) in there and (a.colour, b.shape) in there:
                return None
            return right, f"{article(f'{b.colour} {a.shape}')} {where} {article(f'{a.colour} {b.shape}')}"
        case _:
            return right, f"{article(second)} {where} {article(first)}"


def negation(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """(caption, the same with a part denied): CC-Neg's."""
    a, b = rng.sample(scene.things, 2)
    first, second = article(noun(a, rng)), article(noun(b, rng))
    places = (CELLS[a.cell], CELLS[b.cell])
    caption = f"{first} at the {places[0]} and {second} at the {places[1]}"
    return caption, f"{first} at the {places[0]} but not {second} at the {places[1]}"
