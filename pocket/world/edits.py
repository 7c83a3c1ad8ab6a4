"""Edits of scenes for composed retrieval: a request to change a reference picture, and the target.

Some requests describe their target fully and need no reference; most need one operation, some a deduction about which thing is
meant.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

from pocket.world.language import full_caption
from pocket.world.lexicon import (
    CELLS,
    COLOURS,
    SETTING_PHRASES,
    SETTINGS,
    SHAPES,
    SIZES,
    article,
    other,
    say,
)
from pocket.world.reasoning_kinds import ReasoningKind
from pocket.world.scene import Scene, Thing, sample_scene


class Edit(NamedTuple):
    """A request `text` for `target`; `operation` says in canonical words what changes."""

    text: str
    target: Scene
    operation: str
    why: ReasoningKind


def refer(thing: Thing, scene: Scene, rng: random.Random) -> str | None:
    """Returns a phrase that means this thing and no other of the scene; None if only its place tells it apart."""
    if sum(t.shape == thing.shape for t in scene.things) == 1:
        return f"the {say(thing.shape, rng)}"
    if sum((t.shape, t.colour) == (thing.shape, thing.colour) for t in scene.things) == 1:
        return f"the {thing.colour} {say(thing.shape, rng)}"
    if sum(t.noun == thing.noun for t in scene.things) == 1:
        return f"the {say(thing.size, rng)} {thing.colour} {say(thing.shape, rng)}"
    return None


def sample_edit(scene: Scene, rng: random.Random, *, simple: float = 0.3) -> Edit:
    """Draws a request about `scene` whose target differs from it."""
    if rng.random() < simple:
        return _described(scene, rng)
    while True:
        edit = rng.choice(_EDITS)(scene, rng)
        if edit is not None and edit.target != scene and edit.target.things:
            return edit


def sample_edits(scene: Scene, rng: random.Random, count: int) -> Edit:
    """Draws one request with `count` successive changes."""
    target = scene
    texts: list[str] = []
    operations: list[str] = []
    whys: list[ReasoningKind] = []
    while len(texts) < count:
        edit = sample_edit(target, rng, simple=0)
        if edit.target.canonical == scene.canonical:
            continue
        target = edit.target
        texts.append(edit.text)
        operations.append(edit.operation)
        whys.append(edit.why)
    text = ", then ".join(texts) if rng.random() < 0.5 else f"first {texts[0]}, then {', then '.join(texts[1:])}"
    deduced = [why for why in whys if why is not ReasoningKind.EDIT]
    return Edit(text, target, ", ".join(operations), deduced[0] if deduced else ReasoningKind.EDIT)


def _described(scene: Scene, rng: random.Random) -> Edit:
    """Draws a request that describes the target in full, without need of the reference."""
    target = scene
    while target == scene:
        target = sample_scene(rng, most=3)
    described = full_caption(target, rng).text
    opening = rng.choice(("not this, but", "something else:", "forget this one, find", "instead show me"))
    return Edit(f"{opening} {described}", target, f"show {target.canonical}", ReasoningKind.NONE)


def _changed(scene: Scene, old: Thing, new: Thing) -> Scene:
    return Scene.of([new if thing is old else thing for thing in scene.things], scene.setting)


def _one(scene: Scene, rng: random.Random) -> tuple[Thing, str] | None:
    """Draws a thing that can be referred to, with the phrase for it."""
    for thing in rng.sample(scene.things, len(scene.things)):
        if (phrase := refer(thing, scene, rng)) is not None:
            return thing, phrase
    return None


def _recolour(scene: Scene, rng: random.Random) -> Edit | None:
    if (found := _one(scene, rng)) is None:
        return None
    thing, phrase = found
    colour = other(list(COLOURS), thing.colour, rng=rng)
    text = rng.choice((f"make {phrase} {colour}", f"{phrase} should be {colour}", f"with {phrase} in {colour}"))
    return Edit(
        text, _changed(scene, thing, replace(thing, colour=colour)), f"{thing.noun} becomes {colour}", ReasoningKind.EDIT
    )


def _reshape(scene: Scene, rng: random.Random) -> Edit | None:
    if (found := _one(scene, rng)) is None:
        return None
    thing, phrase = found
    shape = other(SHAPES, thing.shape, rng=rng)
    text = rng.choice((f"turn {phrase} into {article(say(shape, rng))}", f"{article(say(shape, rng))} in place of {phrase}"))
    return Edit(text, _changed(scene, thing, replace(thing, shape=shape)), f"{thing.noun} becomes {shape}", ReasoningKind.EDIT)


def _resize(scene: Scene, rng: random.Random) -> Edit | None:
    if (found := _one(scene, rng)) is None:
        return None
    thing, phrase = found
    size = other(SIZES, thing.size, rng=rng)
    text = rng.choice((f"make {phrase} {say(size, rng)}", f"{phrase} should be {say(size, rng)}"))
    return Edit(text, _changed(scene, thing, replace(thing, size=size)), f"{thing.noun} becomes {size}", ReasoningKind.EDIT)


def _move(scene: Scene, rng: random.Random) -> Edit | None:
    if (found := _one(scene, rng)) is None:
        return None
    thing, phrase = found
    cell = rng.choice(scene.free_cells)
    text = rng.choice((f"move {phrase} to the {CELLS[cell]}", f"{phrase} is at the {CELLS[cell]} instead"))
    return Edit(
        text, _changed(scene, thing, replace(thing, cell=cell)), f"{thing.noun} moves to {CELLS[cell]}", ReasoningKind.EDIT
    )


def _add(scene: Scene, rng: random.Random) -> Edit | None:
    if len(scene.things) >= 4:
        return None
    cell = rng.choice(scene.free_cells)
    new = Thing(rng.choice(SIZES), rng.choice(list(COLOURS)), rng.choice(SHAPES), cell)
    phrase = f"{article(f'{say(new.size, rng)} {new.colour} {say(new.shape, rng)}')} at the {CELLS[cell]}"
    text = rng.choice((f"add {phrase}", f"the same with {phrase} as well", f"put {phrase}"))
    return Edit(text, Scene.of([*scene.things, new], scene.setting), f"add {new}", ReasoningKind.EDIT)


def _remove(scene: Scene, rng: random.Random) -> Edit | None:
    if len(scene.things) < 2 or (found := _one(scene, rng)) is None:
        return None
    thing, phrase = found
    text = rng.choice((f"remove {phrase}", f"the same without {phrase}", f"take {phrase} away"))
    kept = [t for t in scene.things if t is not thing]
    return Edit(text, Scene.of(kept, scene.setting), f"remove {thing.noun}", ReasoningKind.EDIT)


def _relight(scene: Scene, rng: random.Random) -> Edit | None:
    setting = other(list(SETTINGS), scene.setting, rng=rng)
    text = f"the same, but {rng.choice(SETTING_PHRASES[setting])}"
    return Edit(text, Scene.of(scene.things, setting), f"setting becomes {setting}", ReasoningKind.EDIT)


def _swap(scene: Scene, rng: random.Random) -> Edit | None:
    if len(scene.things) < 2:
        return None
    a, b = rng.sample(scene.things, 2)
    first, second = refer(a, scene, rng), refer(b, scene, rng)
    if first is None or second is None or a.colour == b.colour:
        return None
    things = [replace(t, colour=b.colour) if t is a else replace(t, colour=a.colour) if t is b else t for t in scene.things]
    text = rng.choice((f"swap the colours of {first} and {second}", f"{first} and {second} exchange their colours"))
    return Edit(
        text,
        Scene.of(things, scene.setting),
        f"{a.noun} becomes {b.colour}, {b.noun} becomes {a.colour}",
        ReasoningKind.COMPARISON,
    )


def _keep_only(scene: Scene, rng: random.Random) -> Edit | None:
    if len(scene.things) < 2 or (found := _one(scene, rng)) is None:
        return None
    thing, phrase = found
    text = rng.choice((f"nothing but {phrase}", f"remove everything that is not {phrase}"))
    gone = ", ".join(f"remove {t.noun}" for t in scene.things if t is not thing)
    return Edit(text, Scene.of([thing], scene.setting), gone, ReasoningKind.NEGATION)


def _recolour_others(scene: Scene, rng: random.Random) -> Edit | None:
    colours = Counter(thing.colour for thing in scene.things)
    if len(colours) < 2:
        return None
    kept = rng.choice(sorted(colours))
    new = other(list(COLOURS), kept, rng=rng)
    things = [thing if thing.colour == kept else replace(thing, colour=new) for thing in scene.things]
    text = rng.choice((f"everything that is not {kept} becomes {new}", f"all but what is {kept} should be {new}"))
    operation = ", ".join(f"{t.noun} becomes {new}" for t in scene.things if t.colour != kept)
    return Edit(text, Scene.of(things, scene.setting), operation, ReasoningKind.NEGATION)


_EXTREMES: Final[tuple[tuple[str, Callable[[Thing], int]], ...]] = (
    ("leftmost", lambda thing: thing.column),
    ("rightmost", lambda thing: -thing.column),
    ("topmost", lambda thing: thing.row),
    ("lowest", lambda thing: -thing.row),
)


def _extreme(scene: Scene, rng: random.Random) -> Edit | None:
    if len(scene.things) < 2:
        return None
    word, key = rng.choice(_EXTREMES)
    ordered = sorted(scene.things, key=key)
    if key(ordered[0]) == key(ordered[1]):
        return None
    thing = ordered[0]
    if rng.random() < 0.5:
        text = rng.choice((f"remove the {word} thing", f"without the {word} one"))
        return Edit(text, Scene.of(ordered[1:], scene.setting), f"remove {thing.noun}", ReasoningKind.COMPARISON)
    colour = other(list(COLOURS), thing.colour, rng=rng)
    text = f"make the {word} thing {colour}"
    return Edit(
        text, _changed(scene, thing, replace(thing, colour=colour)), f"{thing.noun} becomes {colour}", ReasoningKind.COMPARISON
    )


def _by_size(scene: Scene, rng: random.Random) -> Edit | None:
    if len(scene.things) != 2 or scene.things[0].size == scene.things[1].size:
        return None
    thing = rng.choice(scene.things)
    word = "larger" if thing.size == "large" else "smaller"
    colour = other(list(COLOURS), thing.colour, rng=rng)
    text = rng.choice((f"make the {word} one {colour}", f"the {word} of the two is {colour}"))
    return Edit(
        text, _changed(scene, thing, replace(thing, colour=colour)), f"{thing.noun} becomes {colour}", ReasoningKind.COMPARISON
    )


def _like(scene: Scene, rng: random.Random) -> Edit | None:
    if len(scene.things) < 2 or (found := _one(scene, rng)) is None:
        return None
    thing, phrase = found
    things = [replace(t, colour=thing.colour) for t in scene.things]
    text = rng.choice((f"everything in the colour of {phrase}", f"give all the others the colour of {phrase}"))
    operation = ", ".join(f"{t.noun} becomes {thing.colour}" for t in scene.things if t.colour != thing.colour)
    return Edit(text, Scene.of(things, scene.setting), operation, ReasoningKind.COMPARISON)


def _one_more(scene: Scene, rng: random.Random) -> Edit | None:
    if len(scene.things) >= 4 or (found := _one(scene, rng)) is None:
        return None
    thing, _ = found
    if sum(t.shape == thing.shape for t in scene.things) > 1:
        return None
    cell = rng.choice(scene.free_cells)
    shape = say(thing.shape, rng)
    text = rng.choice((f"one more such {shape}, at the {CELLS[cell]}", f"two of that {shape}: the second at the {CELLS[cell]}"))
    new = replace(thing, cell=cell)
    return Edit(text, Scene.of([*scene.things, new], scene.setting), f"add {new}", ReasoningKind.COUNTING)


def _just_one(scene: Scene, rng: random.Random) -> Edit | None:
    looks = Counter(thing.noun for thing in scene.things)
    noun, count = looks.most_common(1)[0]
    if count != 2:
        return None
    a, b = (thing for thing in scene.things if thing.noun == noun)
    shape = say(a.shape, rng)
    if a.row == b.row:
        keep, word = (a, "left") if rng.random() < 0.5 else (b, "right")
    else:
        keep, word = (a, "upper") if rng.random() < 0.5 else (b, "lower")
    gone = b if keep is a else a
    if sum(t.shape == a.shape for t in scene.things) != 2:
        return None
    text = f"only one {shape} instead of two: the {word} one stays"
    kept = [t for t in scene.things if t is not gone]
    return Edit(text, Scene.of(kept, scene.setting), f"remove {gone.noun} {CELLS[gone.cell]}", ReasoningKind.COUNTING)


_EDITS: Final = (
    _recolour, _recolour, _reshape, _resize, _move, _move, _add, _add, _remove, _relight,
    _swap, _keep_only, _recolour_others, _extreme, _extreme, _by_size, _like, _one_more, _just_one,
)  # fmt: skip
