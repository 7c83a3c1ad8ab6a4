"""CIRR and FashionIQ queries: a reference image and a change."""

from __future__ import annotations

import random

from pocket.curriculum.difficulty import is_demanding
from pocket.curriculum.solved_query import SolvedQuery, other_garment
from pocket.world.draw import draw_garment, draw_scene
from pocket.world.edits import sample_edit, sample_edits
from pocket.world.garment import sample_garment
from pocket.world.garment_edits import sample_garment_edit
from pocket.world.reasoning_kinds import ReasoningKind
from pocket.world.scene import sample_scene

SEVERAL_CHANGES = 0.35
"""Share of the requests that ask for two changes or three, where lessons are demanding."""


def edited_scene(rng: random.Random) -> SolvedQuery:
    scene = sample_scene(rng)
    several = is_demanding() and rng.random() < SEVERAL_CHANGES
    edit = sample_edits(scene, rng, rng.choice((2, 2, 3))) if several else sample_edit(scene, rng)
    kept = [str(thing) for thing in scene.things if thing in edit.target.things]
    kept += [scene.setting] if scene.setting == edit.target.setting and edit.why is not ReasoningKind.NONE else []
    misread = sample_edit(scene, rng, simple=0).target.canonical
    confused = sample_edit(edit.target, rng, simple=0).target.canonical
    return SolvedQuery(
        "cirr_task7",
        edit.text,
        draw_scene(scene, rng),
        edit.why,
        (
            scene.canonical,
            "everything changes" if edit.why is ReasoningKind.NONE else edit.operation,
            ", ".join(kept) or "nothing",
        ),
        edit.target.canonical,
        tuple(wrong for wrong in (misread, confused, scene.canonical) if wrong != edit.target.canonical),
        draw_scene(edit.target, rng),
    )


def edited_garment(rng: random.Random) -> SolvedQuery:
    garment = sample_garment(rng)
    edit = sample_garment_edit(garment, rng, attributes=(1, 1, 2, 2, 3) if is_demanding() else (1, 1, 2))
    pairs = [
        (name, getattr(garment, name), getattr(edit.target, name)) for name in ("length", "colour", "pattern", "kind", "trim")
    ]
    kept = [f"{old or 'no'} trim" if name == "trim" else old for name, old, new in pairs if old == new]
    confused = other_garment(edit.target, rng)
    return SolvedQuery(
        "fashioniq_task7",
        edit.text,
        draw_garment(garment, rng),
        edit.why,
        (
            garment.canonical,
            "everything changes" if edit.why is ReasoningKind.NONE else edit.operation,
            ", ".join(kept) if kept and edit.why is not ReasoningKind.NONE else "nothing",
        ),
        edit.target.canonical,
        tuple(wrong for wrong in (other_garment(garment, rng), confused, garment.canonical) if wrong != edit.target.canonical),
        draw_garment(edit.target, rng),
    )
