"""Scenes with more things than any of the training has, and what is said of them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Final

from pocket.world.edits import sample_edit
from pocket.world.lexicon import CELLS, COLOURS, SETTING_PHRASES, SHAPES, SIZES, article, listing, other, say
from pocket.world.scene import Scene, Thing, sample_scene

LEAST: Final = 5
MOST: Final = 7


class Crowds:
    """Draws scenes that have not been drawn before."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._drawn: set[str] = set()

    def scene(self, least: int = LEAST, most: int = MOST) -> Scene:
        while True:
            scene = sample_scene(self.rng, least=least, most=most)
            if self.admit(scene):
                return scene

    def admit(self, scene: Scene) -> bool:
        if scene.canonical in self._drawn or not LEAST <= len(scene.things) <= MOST + 1:
            return False
        self._drawn.add(scene.canonical)
        return True

    def changed(self, scene: Scene, times: int = 2) -> tuple[str, Scene]:
        """(request, target) of several changes at once."""
        while True:
            target = scene
            texts: list[str] = []
            while len(texts) < times:
                edit = sample_edit(target, self.rng, simple=0)
                if len(edit.target.things) < LEAST:
                    break
                target = edit.target
                texts.append(edit.text)
            if len(texts) == times and self.admit(target):
                return " and ".join(texts), target


def noun(thing: Thing, rng: random.Random) -> str:
    return f"{say(thing.size, rng)} {thing.colour} {say(thing.shape, rng)}"


def told(things: list[Thing] | tuple[Thing, ...], rng: random.Random) -> str:
    return listing([f"{article(noun(thing, rng))} at the {CELLS[thing.cell]}" for thing in things])


def long_caption(scene: Scene, rng: random.Random) -> str:
    """Several sentences that leave nothing out."""
    things = list(scene.things)
    rng.shuffle(things)
    half = len(things) // 2
    return (
        f"The picture was taken {rng.choice(SETTING_PHRASES[scene.setting])} and shows {len(things)} things. "
        f"There is {told(things[:half], rng)}. Apart from that one finds {told(things[half:], rng)}."
    )


def short_caption(scene: Scene, rng: random.Random) -> str:
    """Of all but one or two things."""
    kept = rng.sample(scene.things, len(scene.things) - rng.randint(1, 2))
    return f"{told(kept, rng)}, among other things, {rng.choice(SETTING_PHRASES[scene.setting])}"


def dialogue(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """(question, answer) without the marks that the data set leaves out."""
    turns = [("how many things are there", str(len(scene.things)))]
    turns.append(("what time or place is it", rng.choice(SETTING_PHRASES[scene.setting])))
    turns += [(f"what is at the {CELLS[thing.cell]}", article(noun(thing, rng))) for thing in scene.things]
    empty = scene.free_cells
    turns += [(f"is there anything at the {CELLS[cell]}", "no, nothing") for cell in rng.sample(empty, min(2, len(empty)))]
    rng.shuffle(turns)
    return turns[:10]


def with_thing(scene: Scene, old: Thing, **changes: str | int) -> Scene:
    return Scene.of([replace(one, **changes) if one == old else one for one in scene.things], scene.setting)  # type: ignore[arg-type]


def another(what: str, than: str, rng: random.Random) -> str:
    """Another colour, shape or size."""
    choices: dict[str, list[str]] = {"colour": list(COLOURS), "shape": list(SHAPES), "size": list(SIZES)}
    return other(choices[what], than, rng=rng)
