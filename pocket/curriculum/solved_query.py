"""A retrieval query with everything known about it: the correct trace, the target, wrong answers."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image

from pocket.world.edits import sample_edit
from pocket.world.garment import Garment, GarmentClaim, sample_garment
from pocket.world.garment_edits import sample_garment_edit
from pocket.world.instructions import INSTRUCTIONS
from pocket.world.lexicon import CELLS, COLOURS, NUMBERS, SHAPES, other
from pocket.world.reasoning_kinds import ReasoningKind
from pocket.world.scene import Claim, Scene, sample_scene

_TRIES = 50


@dataclass(frozen=True, slots=True)
class SolvedQuery:
    """A query with its solution.

    `facets` are the texts of the family's facets in order; `wrong` are answers that a careless teacher might give; `target` is
    what the verifier sees: a picture, a text, or both.
    """

    dataset_task: str
    text: str
    picture: Image.Image | None
    why: ReasoningKind
    facets: tuple[str, ...]
    answer: str
    wrong: tuple[str, ...]
    target_picture: Image.Image | None = None
    target_text: str = ""

    @property
    def instruction_choices(self) -> tuple[str, ...]:
        return INSTRUCTIONS[self.dataset_task]


# Canonical words for claims


def claim_words(claim: Claim) -> str:
    """Renders exactly what a claim says: ``small red circle top left, blue square, night``."""
    things = []
    for partial in claim.things:
        words = [word for word in (partial.size, partial.colour, partial.shape) if word]
        things.append(" ".join(words + ([CELLS[partial.cell]] if partial.cell is not None else [])))
    names = [partial.shape for partial in claim.things]
    relations = [f"{names[a]} {relation} {names[b]}" for a, relation, b in claim.relations]
    return ", ".join(things + relations + ([claim.setting] if claim.setting else []))


def garment_words(claim: GarmentClaim) -> str:
    words = [word for word in (claim.length, claim.colour, claim.pattern, claim.kind) if word]
    return " ".join(words) + (f", {claim.trim} trim" if claim.trim else "")


def thing_count(things: int, setting: str | None) -> str:
    return f"{NUMBERS[things]} {'thing' if things == 1 else 'things'}{f', {setting}' if setting else ''}"


def other_scene(scene: Scene, rng: random.Random, *, than: Claim | None = None) -> Scene:
    """Draws a scene that differs in one thing; with `than`, in a thing that this text mentions, so that it can be told."""
    for _ in range(_TRIES):
        found = sample_edit(scene, rng, simple=0).target
        if than is None or not than.matches(found):
            return found
    while than is not None and than.matches(found):  # it says so little that no single change makes it wrong
        found = sample_scene(rng)
    return found


def other_claim(claim: Claim, rng: random.Random) -> str:
    """Renders the claim with the colour, or else the shape, of one thing wrong."""
    index = rng.randrange(len(claim.things))
    words = claim_words(claim).split(", ")
    partial = claim.things[index]
    if partial.colour is not None:
        words[index] = words[index].replace(partial.colour, other(list(COLOURS), partial.colour, rng=rng))
    else:
        words[index] = words[index].replace(partial.shape, other(SHAPES, partial.shape, rng=rng))
    return ", ".join(words)


def other_garment(garment: Garment, rng: random.Random, *, than: GarmentClaim | None = None) -> str:
    """The words of another garment; otherwise like `other_scene`."""
    for _ in range(_TRIES):
        found = sample_garment_edit(garment, rng, simple=0).target
        if than is None or not than.matches(found):
            return found.canonical
    while than is not None and than.matches(found):
        found = sample_garment(rng)
    return found.canonical
