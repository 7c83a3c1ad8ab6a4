"""Edits of garments for composed retrieval: a request to change attributes of a reference, and the target."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from pocket.world.garment import Garment, sample_garment
from pocket.world.language import full_garment_caption
from pocket.world.lexicon import COLOURS, GARMENT_KINDS, LENGTHS, PATTERN_WORDS, PATTERNS, article, other
from pocket.world.reasoning_kinds import ReasoningKind


class GarmentEdit(NamedTuple):
    text: str
    target: Garment
    operation: str
    why: ReasoningKind


def sample_garment_edit(
    garment: Garment, rng: random.Random, *, simple: float = 0.3, attributes: Sequence[int] = (1, 1, 2)
) -> GarmentEdit:
    """Draws a request about `garment` whose target differs from it. `attributes`: how many change; None: random."""
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
            ReasoningKind.NONE,
        )
    while True:
        if rng.random() < 0.2:  # these change cloth and trim together, so they are not combined with others
            changed = rng.choice((_in_colour_of_trim, _exchanged))(garment, rng)
            if changed is not None:
                target, text, why = changed
                return GarmentEdit(text, target, ", ".join(_garment_changes(garment, target)), why)
        edit = _attribute_edit(garment, rng.sample(_GARMENT_EDITS, rng.choice(attributes)), rng)
        if edit is not None:
            return edit


def _attribute_edit(garment: Garment, makers: Sequence[_Maker], rng: random.Random) -> GarmentEdit | None:
    """Combines several changes in one request; None if two change the same attribute or one does not apply."""
    target, texts, why = garment, [], ReasoningKind.EDIT
    for make in makers:
        changed = make(target, rng)
        if changed is None:
            return None
        target, text, reason = changed
        texts.append(text)
        why = reason if reason is not ReasoningKind.EDIT else why
    changes = _garment_changes(garment, target)
    return GarmentEdit(" and ".join(texts), target, ", ".join(changes), why) if len(changes) == len(makers) else None


def _garment_changes(old: Garment, new: Garment) -> list[str]:
    changes = [
        f"{name} becomes {getattr(new, name) or 'no'}"
        for name in ("length", "colour", "pattern", "kind", "trim")
        if getattr(new, name) != getattr(old, name)
    ]
    return [change.replace("trim becomes no", "no trim") for change in changes]


_Change = tuple[Garment, str, ReasoningKind] | None
_Maker = Callable[[Garment, random.Random], _Change]


def _other_colour(g: Garment, rng: random.Random) -> _Change:
    colour = other(list(COLOURS), g.colour, g.trim or "", rng=rng)
    return (
        replace(g, colour=colour),
        rng.choice((f"is {colour}", f"in {colour} instead", f"is {colour} instead of {g.colour}")),
        ReasoningKind.EDIT,
    )


def _other_pattern(g: Garment, rng: random.Random) -> _Change:
    pattern = other(PATTERNS, g.pattern, rng=rng)
    word = rng.choice(PATTERN_WORDS[pattern])
    return replace(g, pattern=pattern), rng.choice((f"is {word}", f"is {word} instead of {g.pattern}")), ReasoningKind.EDIT


def _other_length(g: Garment, rng: random.Random) -> _Change:
    length = other(LENGTHS, g.length, rng=rng)
    return replace(g, length=length), rng.choice((f"is {length}er", f"is {length} instead")), ReasoningKind.EDIT


def _other_kind(g: Garment, rng: random.Random) -> _Change:
    kind = other(GARMENT_KINDS, g.kind, rng=rng)
    return replace(g, kind=kind), f"is {kind if kind == 'trousers' else article(kind)} instead", ReasoningKind.EDIT


def _other_trim(g: Garment, rng: random.Random) -> _Change:
    if g.trim is not None and rng.random() < 0.4:
        return replace(g, trim=None), rng.choice(("has no trim", "is without the trim")), ReasoningKind.EDIT
    trim = other(list(COLOURS), g.colour, g.trim or "", rng=rng)
    return replace(g, trim=trim), rng.choice((f"has {trim} trim", f"comes with {article(trim)} band")), ReasoningKind.EDIT


def _in_colour_of_trim(g: Garment, rng: random.Random) -> _Change:
    if g.trim is None:
        return None
    return replace(g, colour=g.trim, trim=None), "is all in the colour of its trim", ReasoningKind.COMPARISON


def _exchanged(g: Garment, rng: random.Random) -> _Change:
    if g.trim is None:
        return None
    return replace(g, colour=g.trim, trim=g.colour), "has the colours of cloth and trim exchanged", ReasoningKind.COMPARISON


def _by_exclusion(g: Garment, rng: random.Random) -> _Change:
    pattern = other(PATTERNS, g.pattern, rng=rng)
    rest = [name for name in PATTERNS if name not in (pattern, g.pattern)]
    return replace(g, pattern=pattern), f"has another pattern, but neither {rest[0]} nor {rest[1]}", ReasoningKind.NEGATION


def _not_long(g: Garment, rng: random.Random) -> _Change:
    return replace(g, length=other(LENGTHS, g.length, rng=rng)), f"is not {g.length}", ReasoningKind.NEGATION


_GARMENT_EDITS: Final[tuple[_Maker, ...]] = (
    _other_colour,
    _other_pattern,
    _other_length,
    _other_kind,
    _other_trim,
    _by_exclusion,
    _not_long,
)
