"""Composed retrieval: what is asked to change about a reference picture, and the picture that is meant.

Some requests describe their target fully and need no reference; most take one operation, some a deduction about which thing
is meant.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from pocket.world.garment import Garment, sample_garment
from pocket.world.language import full_caption, full_garment_caption
from pocket.world.lexicon import (
    CELLS,
    COLOURS,
    GARMENT_KINDS,
    LENGTHS,
    PATTERN_WORDS,
    PATTERNS,
    SETTING_PHRASES,
    SETTINGS,
    SHAPES,
    SIZES,
    article,
    other,
    say,
)
from pocket.world.reasons import Why
from pocket.world.scene import Scene, Thing, sample_scene


class Edit(NamedTuple):
    """`text` asks for `target`; `operation` says in canonical words what changes."""

    text: str
    target: Scene
    operation: str
    why: Why


class GarmentEdit(NamedTuple):
    text: str
    target: Garment
    operation: str
    why: Why


def refer(thing: Thing, scene: Scene, rng: random.Random) -> str | None:
    """A phrase that means this thing and no other of the scene; None where only its place would tell it apart."""
    if sum(t.shape == thing.shape for t in scene.things) == 1:
        return f"the {say(thing.shape, rng)}"
    if sum((t.shape, t.colour) == (thing.shape, thing.colour) for t in scene.things) == 1:
        return f"the {thing.colour} {say(thing.shape, rng)}"
    if sum(t.noun == thing.noun for t in scene.things) == 1:
        return f"the {say(thing.size, rng)} {thing.colour} {say(thing.shape, rng)}"
    return None


def sample_edit(scene: Scene, rng: random.Random, *, simple: float = 0.3) -> Edit:
    """A request about `scene` whose target differs from it."""
    if rng.random() < simple:
        return _described(scene, rng)
    while True:
        edit = rng.choice(_EDITS)(scene, rng)
        if edit is not None and edit.target != scene and edit.target.things:
            return edit


def _described(scene: Scene, rng: random.Random) -> Edit:
    """The target in full; the reference is of no use."""
    target = scene
    while target == scene:
        target = sample_scene(rng, most=3)
    described = full_caption(target, rng).text
    opening = rng.choice(("not this, but", "something else:", "forget this one, find", "instead show me"))
    return Edit(f"{opening} {described}", target, f"show {target.canonical}", Why.NONE)


def _changed(scene: Scene, old: Thing, new: Thing) -> Scene:
    return Scene.of([new if thing is old else thing for thing in scene.things], scene.setting)


def _one(scene: Scene, rng: random.Random) -> tuple[Thing, str] | None:
    """A thing that can be referred to, and how."""
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
    return Edit(text, _changed(scene, thing, replace(thing, colour=colour)), f"{thing.noun} becomes {colour}", Why.EDIT)


def _reshape(scene: Scene, rng: random.Random) -> Edit | None:
    if (found := _one(scene, rng)) is None:
        return None
    thing, phrase = found
    shape = other(SHAPES, thing.shape, rng=rng)
    text = rng.choice((f"turn {phrase} into {article(say(shape, rng))}", f"{article(say(shape, rng))} in place of {phrase}"))
    return Edit(text, _changed(scene, thing, replace(thing, shape=shape)), f"{thing.noun} becomes {shape}", Why.EDIT)


def _resize(scene: Scene, rng: random.Random) -> Edit | None:
    if (found := _one(scene, rng)) is None:
        return None
    thing, phrase = found
    size = other(SIZES, thing.size, rng=rng)
    text = rng.choice((f"make {phrase} {say(size, rng)}", f"{phrase} should be {say(size, rng)}"))
    return Edit(text, _changed(scene, thing, replace(thing, size=size)), f"{thing.noun} becomes {size}", Why.EDIT)


def _move(scene: Scene, rng: random.Random) -> Edit | None:
    if (found := _one(scene, rng)) is None:
        return None
    thing, phrase = found
    cell = rng.choice(scene.free_cells)
    text = rng.choice((f"move {phrase} to the {CELLS[cell]}", f"{phrase} is at the {CELLS[cell]} instead"))
    return Edit(text, _changed(scene, thing, replace(thing, cell=cell)), f"{thing.noun} moves to {CELLS[cell]}", Why.EDIT)


def _add(scene: Scene, rng: random.Random) -> Edit | None:
    if len(scene.things) >= 4:
        return None
    cell = rng.choice(scene.free_cells)
    new = Thing(rng.choice(SIZES), rng.choice(list(COLOURS)), rng.choice(SHAPES), cell)
    phrase = f"{article(f'{say(new.size, rng)} {new.colour} {say(new.shape, rng)}')} at the {CELLS[cell]}"
    text = rng.choice((f"add {phrase}", f"the same with {phrase} as well", f"put {phrase}"))
    return Edit(text, Scene.of([*scene.things, new], scene.setting), f"add {new}", Why.EDIT)


def _remove(scene: Scene, rng: random.Random) -> Edit | None:
    if len(scene.things) < 2 or (found := _one(scene, rng)) is None:
        return None
    thing, phrase = found
    text = rng.choice((f"remove {phrase}", f"the same without {phrase}", f"take {phrase} away"))
    kept = [t for t in scene.things if t is not thing]
    return Edit(text, Scene.of(kept, scene.setting), f"remove {thing.noun}", Why.EDIT)


def _relight(scene: Scene, rng: random.Random) -> Edit | None:
    setting = other(list(SETTINGS), scene.setting, rng=rng)
    text = f"the same, but {rng.choice(SETTING_PHRASES[setting])}"
    return Edit(text, Scene.of(scene.things, setting), f"setting becomes {setting}", Why.EDIT)


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
        text, Scene.of(things, scene.setting), f"{a.noun} becomes {b.colour}, {b.noun} becomes {a.colour}", Why.COMPARISON
    )


def _keep_only(scene: Scene, rng: random.Random) -> Edit | None:
    if len(scene.things) < 2 or (found := _one(scene, rng)) is None:
        return None
    thing, phrase = found
    text = rng.choice((f"nothing but {phrase}", f"remove everything that is not {phrase}"))
    gone = ", ".join(f"remove {t.noun}" for t in scene.things if t is not thing)
    return Edit(text, Scene.of([thing], scene.setting), gone, Why.NEGATION)


def _recolour_others(scene: Scene, rng: random.Random) -> Edit | None:
    colours = Counter(thing.colour for thing in scene.things)
    if len(colours) < 2:
        return None
    kept = rng.choice(sorted(colours))
    new = other(list(COLOURS), kept, rng=rng)
    things = [thing if thing.colour == kept else replace(thing, colour=new) for thing in scene.things]
    text = rng.choice((f"everything that is not {kept} becomes {new}", f"all but what is {kept} should be {new}"))
    operation = ", ".join(f"{t.noun} becomes {new}" for t in scene.things if t.colour != kept)
    return Edit(text, Scene.of(things, scene.setting), operation, Why.NEGATION)


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
        return Edit(text, Scene.of(ordered[1:], scene.setting), f"remove {thing.noun}", Why.COMPARISON)
    colour = other(list(COLOURS), thing.colour, rng=rng)
    text = f"make the {word} thing {colour}"
    return Edit(text, _changed(scene, thing, replace(thing, colour=colour)), f"{thing.noun} becomes {colour}", Why.COMPARISON)


def _by_size(scene: Scene, rng: random.Random) -> Edit | None:
    if len(scene.things) != 2 or scene.things[0].size == scene.things[1].size:
        return None
    thing = rng.choice(scene.things)
    word = "larger" if thing.size == "large" else "smaller"
    colour = other(list(COLOURS), thing.colour, rng=rng)
    text = rng.choice((f"make the {word} one {colour}", f"the {word} of the two is {colour}"))
    return Edit(text, _changed(scene, thing, replace(thing, colour=colour)), f"{thing.noun} becomes {colour}", Why.COMPARISON)


def _like(scene: Scene, rng: random.Random) -> Edit | None:
    if len(scene.things) < 2 or (found := _one(scene, rng)) is None:
        return None
    thing, phrase = found
    things = [replace(t, colour=thing.colour) for t in scene.things]
    text = rng.choice((f"everything in the colour of {phrase}", f"give all the others the colour of {phrase}"))
    operation = ", ".join(f"{t.noun} becomes {thing.colour}" for t in scene.things if t.colour != thing.colour)
    return Edit(text, Scene.of(things, scene.setting), operation, Why.COMPARISON)


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
    return Edit(text, Scene.of([*scene.things, new], scene.setting), f"add {new}", Why.COUNTING)


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
    return Edit(text, Scene.of(kept, scene.setting), f"remove {gone.noun} {CELLS[gone.cell]}", Why.COUNTING)


_EDITS: Final = (
    _recolour, _recolour, _reshape, _resize, _move, _move, _add, _add, _remove, _relight,
    _swap, _keep_only, _recolour_others, _extreme, _extreme, _by_size, _like, _one_more, _just_one,
)  # fmt: skip


# Garments


def sample_garment_edit(garment: Garment, rng: random.Random, *, simple: float = 0.3) -> GarmentEdit:
    """A request about `garment`, of one or two attributes, whose target differs from it."""
    if rng.random() < simple:
        target = garment
        while target == garment:
            target = sample_garment(rng)
        described = full_garment_caption(target, rng).text
        opening = rng.choice(("rather", "not this but", "something else:", "show me instead"))
        return GarmentEdit(
            f"{opening} {described if target.kind == 'trousers' else article(described)}",
            target,
            f"show {target.canonical}",
            Why.NONE,
        )
    while True:
        if rng.random() < 0.2:  # these touch cloth and trim together, so they stand alone
            changed = rng.choice((_in_colour_of_trim, _exchanged))(garment, rng)
            if changed is not None:
                target, text, why = changed
                return GarmentEdit(text, target, ", ".join(_garment_changes(garment, target)), why)
        edit = _attribute_edit(garment, rng.sample(_GARMENT_EDITS, rng.choice((1, 1, 2))), rng)
        if edit is not None:
            return edit


def _attribute_edit(garment: Garment, makers: Sequence[_Maker], rng: random.Random) -> GarmentEdit | None:
    """Several changes in one request; None where they touch the same attribute or one does not apply."""
    target, texts, why = garment, [], Why.EDIT
    for make in makers:
        changed = make(target, rng)
        if changed is None:
            return None
        target, text, reason = changed
        texts.append(text)
        why = reason if reason is not Why.EDIT else why
    changes = _garment_changes(garment, target)
    return GarmentEdit(" and ".join(texts), target, ", ".join(changes), why) if len(changes) == len(makers) else None


def _garment_changes(old: Garment, new: Garment) -> list[str]:
    changes = [
        f"{name} becomes {getattr(new, name) or 'no'}"
        for name in ("length", "colour", "pattern", "kind", "trim")
        if getattr(new, name) != getattr(old, name)
    ]
    return [change.replace("trim becomes no", "no trim") for change in changes]


_Change = tuple[Garment, str, Why] | None
_Maker = Callable[[Garment, random.Random], _Change]


def _other_colour(g: Garment, rng: random.Random) -> _Change:
    colour = other(list(COLOURS), g.colour, g.trim or "", rng=rng)
    return (
        replace(g, colour=colour),
        rng.choice((f"is {colour}", f"in {colour} instead", f"is {colour} instead of {g.colour}")),
        Why.EDIT,
    )


def _other_pattern(g: Garment, rng: random.Random) -> _Change:
    pattern = other(PATTERNS, g.pattern, rng=rng)
    word = rng.choice(PATTERN_WORDS[pattern])
    return replace(g, pattern=pattern), rng.choice((f"is {word}", f"is {word} instead of {g.pattern}")), Why.EDIT


def _other_length(g: Garment, rng: random.Random) -> _Change:
    length = other(LENGTHS, g.length, rng=rng)
    return replace(g, length=length), rng.choice((f"is {length}er", f"is {length} instead")), Why.EDIT


def _other_kind(g: Garment, rng: random.Random) -> _Change:
    kind = other(GARMENT_KINDS, g.kind, rng=rng)
    return replace(g, kind=kind), f"is {kind if kind == 'trousers' else article(kind)} instead", Why.EDIT


def _other_trim(g: Garment, rng: random.Random) -> _Change:
    if g.trim is not None and rng.random() < 0.4:
        return replace(g, trim=None), rng.choice(("has no trim", "is without the trim")), Why.EDIT
    trim = other(list(COLOURS), g.colour, g.trim or "", rng=rng)
    return replace(g, trim=trim), rng.choice((f"has {trim} trim", f"comes with {article(trim)} band")), Why.EDIT


def _in_colour_of_trim(g: Garment, rng: random.Random) -> _Change:
    if g.trim is None:
        return None
    return replace(g, colour=g.trim, trim=None), "is all in the colour of its trim", Why.COMPARISON


def _exchanged(g: Garment, rng: random.Random) -> _Change:
    if g.trim is None:
        return None
    return replace(g, colour=g.trim, trim=g.colour), "has the colours of cloth and trim exchanged", Why.COMPARISON


def _by_exclusion(g: Garment, rng: random.Random) -> _Change:
    pattern = other(PATTERNS, g.pattern, rng=rng)
    rest = [name for name in PATTERNS if name not in (pattern, g.pattern)]
    return replace(g, pattern=pattern), f"has another pattern, but neither {rest[0]} nor {rest[1]}", Why.NEGATION


def _not_long(g: Garment, rng: random.Random) -> _Change:
    return replace(g, length=other(LENGTHS, g.length, rng=rng)), f"is not {g.length}", Why.NEGATION


_GARMENT_EDITS: Final[tuple[_Maker, ...]] = (
    _other_colour,
    _other_pattern,
    _other_length,
    _other_kind,
    _other_trim,
    _by_exclusion,
    _not_long,
)
