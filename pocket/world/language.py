"""Texts about pictures: captions, and riddles whose meaning takes a deduction.

Each function returns a text together with its claim, from which one can compute the pictures that the text is true of.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Final, NamedTuple

from pocket.world.encyclopedia import Town
from pocket.world.garment import Garment, GarmentClaim
from pocket.world.lexicon import (
    CELLS,
    COLOURS,
    NUMBERS,
    PATTERN_WORDS,
    PATTERNS,
    SETTING_PHRASES,
    WEEKDAYS,
    WITNESSES,
    article,
    listing,
    other,
    plural,
    say,
)
from pocket.world.reasoning_kinds import ReasoningKind
from pocket.world.scene import Claim, Partial, Scene, Thing, relation_between


class Utterance(NamedTuple):
    """A text about a scene, its claim, and the reasoning that it needs."""

    text: str
    claim: Claim
    why: ReasoningKind = ReasoningKind.NONE


class GarmentUtterance(NamedTuple):
    text: str
    claim: GarmentClaim
    why: ReasoningKind = ReasoningKind.NONE


_OPENINGS: Final = ("", "", "", "a picture of ", "we see ")
_ASIDES: Final = (
    "seen on a {weekday}",
    "as one of the {witnesses} noticed",
    "taken by a passer-by",
    "in a picture from last {weekday}",
    "just before the {witnesses} came",
)


def caption(scene: Scene, rng: random.Random) -> Utterance:
    """Draws a caption that mentions every thing but leaves some attributes out."""
    said = _by_relation(scene, rng) if len(scene.things) == 2 and rng.random() < 0.5 else _by_listing(scene, rng)
    return _with_setting(said, scene, rng)


def full_caption(scene: Scene, rng: random.Random) -> Utterance:
    """Draws a complete caption, true of this scene only."""
    phrases = [f"{article(_noun(thing, rng)[0])} at the {CELLS[thing.cell]}" for thing in scene.things]
    claim = Claim(tuple(Partial(t.shape, t.colour, t.size, t.cell) for t in scene.things), setting=scene.setting)
    return Utterance(f"{listing(phrases)}, {rng.choice(SETTING_PHRASES[scene.setting])}", claim)


def aside(text: str, rng: random.Random) -> str:
    """Sometimes adds a clause that says nothing about the picture."""
    if rng.random() < 0.7:
        return text
    clause = rng.choice(_ASIDES).format(weekday=rng.choice(WEEKDAYS), witnesses=rng.choice(WITNESSES))
    return f"{text}, {clause}"


def riddle(scene: Scene, rng: random.Random) -> Utterance | None:
    """Draws a caption that takes a deduction; None if the scene allows none."""
    makers = rng.sample((_same_colour, _other_size, _counted), 3)
    for make in (*makers, _excepted):
        said = make(scene, rng)
        if said is not None:
            return _with_setting(said, scene, rng)
    return None


def _noun(thing: Thing, rng: random.Random, *, size: bool = True, colour: bool = True) -> tuple[str, Partial]:
    words = [say(thing.size, rng)] if size else []
    words += [thing.colour] if colour else []
    partial = Partial(thing.shape, thing.colour if colour else None, thing.size if size else None)
    return " ".join([*words, say(thing.shape, rng)]), partial


def _by_relation(scene: Scene, rng: random.Random) -> Utterance:
    first, second = rng.sample(scene.things, 2)
    relation = relation_between(first, second, rng)
    nouns = [_noun(thing, rng, size=rng.random() < 0.7) for thing in (first, second)]
    spoken = {"left of": "to the left of", "right of": "to the right of"}.get(relation, relation)
    text = f"{rng.choice(_OPENINGS)}{article(nouns[0][0])} {spoken} {article(nouns[1][0])}"
    return Utterance(text, Claim((nouns[0][1], nouns[1][1]), ((0, relation, 1),)))


def _by_listing(scene: Scene, rng: random.Random) -> Utterance:
    groups = Counter(thing.noun for thing in scene.things)
    phrases, partials = [], []
    with_cells = rng.random() < 0.6
    for noun, count in groups.items():
        members = [thing for thing in scene.things if thing.noun == noun]
        spoken, partial = _noun(members[0], rng, size=rng.random() < 0.75)
        if count > 1:
            phrases.append(f"{NUMBERS[count]} {plural(spoken)}")
            partials += [partial] * count
        elif with_cells:
            phrases.append(f"{article(spoken)} {_place(members[0].cell, rng)}")
            partials.append(Partial(partial.shape, partial.colour, partial.size, members[0].cell))
        else:
            phrases.append(article(spoken))
            partials.append(partial)
    return Utterance(rng.choice(_OPENINGS) + listing(phrases), Claim(tuple(partials)))


def _place(cell: int, rng: random.Random) -> str:
    name = CELLS[cell]
    return f"{rng.choice(('at', 'in')) if ' ' in name or name == 'centre' else 'at'} the {name}"


def _with_setting(said: Utterance, scene: Scene, rng: random.Random) -> Utterance:
    if rng.random() < 0.5:
        return said
    claim = Claim(said.claim.things, said.claim.relations, scene.setting)
    return Utterance(f"{said.text}, {rng.choice(SETTING_PHRASES[scene.setting])}", claim, said.why)


def _same_colour(scene: Scene, rng: random.Random) -> Utterance | None:
    if len(scene.things) != 2:
        return None
    a, b = rng.sample(scene.things, 2)
    if a.colour != b.colour or a.shape == b.shape:
        return None
    relation = relation_between(b, a, rng)
    first, first_claim = _noun(a, rng)
    second, _ = _noun(b, rng, colour=False)
    where = {"left of": "to its left", "right of": "to its right"}.get(relation, f"{relation} it")
    text = f"{article(first)} and, {where}, {article(second)} of the same colour"
    return Utterance(
        text, Claim((first_claim, Partial(b.shape, b.colour, b.size)), ((1, relation, 0),)), ReasoningKind.COMPARISON
    )


def _other_size(scene: Scene, rng: random.Random) -> Utterance | None:
    if len(scene.things) != 2 or scene.things[0].size == scene.things[1].size:
        return None
    a, b = rng.sample(scene.things, 2)
    first, first_claim = _noun(a, rng)
    second, _ = _noun(b, rng, size=False)
    text = f"{article(first)} and {article(second)} of the other size"
    return Utterance(text, Claim((first_claim, Partial(b.shape, b.colour, b.size))), ReasoningKind.COMPARISON)


def _counted(scene: Scene, rng: random.Random) -> Utterance | None:
    groups = Counter(thing.noun for thing in scene.things)
    if len(groups) != 2 or len(scene.things) < 3:
        return None
    (a, n), (b, m) = rng.sample(sorted(groups.items()), 2)
    members = [next(thing for thing in scene.things if thing.noun == noun) for noun in (a, b)]
    (first, p), (second, q) = (_noun(thing, rng) for thing in members)
    one = first if n == 1 else plural(first)
    if n == m:
        text = f"{NUMBERS[n]} {one} and as many {plural(second)}"
    elif rng.random() < 0.5 or abs(n - m) != 1:
        rest = "the other one is" if m == 1 else "the others are"
        text = f"{NUMBERS[n + m]} things, of which {NUMBERS[n]} {'is' if n == 1 else 'are'} {article(one) if n == 1 else one}"
        text = text.replace(f"{NUMBERS[n]} is {article(one)}", f"one is {article(one)}")
        text += f" and {rest} {article(second) if m == 1 else plural(second)}"
    else:
        text = f"{NUMBERS[n]} {one} and one {'more' if m > n else 'fewer'} {second if m == 1 else plural(second)}"
    return Utterance(text, Claim((p,) * n + (q,) * m), ReasoningKind.COUNTING)


def _excepted(scene: Scene, rng: random.Random) -> Utterance | None:
    shapes = Counter(thing.shape for thing in scene.things)
    unique = [thing for thing in scene.things if shapes[thing.shape] == 1]
    if not unique:
        return None
    odd = rng.choice(unique)
    wrong = Thing(odd.size, other(list(COLOURS), odd.colour, rng=rng), odd.shape, odd.cell)
    altered = Scene.of([wrong if thing is odd else thing for thing in scene.things], scene.setting)
    said = _by_listing(altered, rng)
    shape = say(odd.shape, rng)
    text = rng.choice(
        (
            f"{said.text}, except that the {shape} is not {wrong.colour} but {odd.colour}",
            f"{said.text} – only the {shape} is {odd.colour} instead of {wrong.colour}",
        )
    )
    index = next(i for i, partial in enumerate(said.claim.things) if partial.shape == odd.shape)
    partial = said.claim.things[index]
    right = Partial(partial.shape, odd.colour, partial.size, partial.cell)
    things = (*said.claim.things[:index], right, *said.claim.things[index + 1 :])
    return Utterance(text, Claim(things), ReasoningKind.NEGATION)


# News


def news_caption(scene: Scene, town: Town, rng: random.Random) -> Utterance:
    """Draws a caption that names the town; the claim is about the scene."""
    said = caption(scene, rng)
    text = _news(town.name, said.text.removeprefix("a picture of ").removeprefix("we see "), rng)
    return Utterance(text[0].upper() + text[1:], said.claim)


def news_riddle(scene: Scene, town: Town, rng: random.Random, birthplace_of: str) -> Utterance:
    """Like `news_caption`, but identifies the town by a fact about it."""
    said = news_caption(scene, town, rng)
    named = rng.choice((f"the town ruled by {town.ruler}", f"the town where {birthplace_of} was born"))
    return Utterance(said.text.replace(town.name, named), said.claim, ReasoningKind.MULTI_HOP)


def _news(town: str, seen: str, rng: random.Random) -> str:
    who, day = rng.choice(WITNESSES), rng.choice(WEEKDAYS)
    return rng.choice(
        (
            f"{who.capitalize()} in {town} gathered on {day} around {seen}",
            f"On {day}, {seen} drew {who} to the main square of {town}",
            f"{seen} in {town}, where {who} met on {day}",
            f"The {who} of {town} were surprised by {seen} this {day}",
        )
    )


# Garments


def garment_caption(garment: Garment, rng: random.Random) -> GarmentUtterance:
    """Draws a product description that may leave out the length, the pattern if plain, or the trim."""
    length = rng.random() < 0.8
    pattern = garment.pattern != "plain" or rng.random() < 0.7
    trim = rng.random() < 0.8
    words = [garment.length] if length else []
    words += [garment.colour]
    words += [rng.choice(PATTERN_WORDS[garment.pattern])] if pattern else []
    rng.shuffle(words)
    text = " ".join([*words, garment.kind])
    if trim:
        text += f" with {garment.trim or 'no'} {rng.choice(('trim', 'band'))}" if garment.trim else " without trim"
    claim = GarmentClaim(
        garment.kind,
        garment.colour,
        garment.pattern if pattern else None,
        garment.length if length else None,
        (garment.trim or "no") if trim else None,
    )
    return GarmentUtterance(text, claim)


def full_garment_caption(garment: Garment, rng: random.Random) -> GarmentUtterance:
    pattern = rng.choice(PATTERN_WORDS[garment.pattern])
    trim = f"with {garment.trim} trim" if garment.trim else "without trim"
    claim = GarmentClaim(garment.kind, garment.colour, garment.pattern, garment.length, garment.trim or "no")
    return GarmentUtterance(f"{garment.length} {garment.colour} {pattern} {garment.kind} {trim}", claim)


def garment_riddle(garment: Garment, rng: random.Random) -> GarmentUtterance:
    """Draws a description by what the garment is not."""
    trim = f"with {garment.trim} trim" if garment.trim else "without trim"
    claim = GarmentClaim(garment.kind, garment.colour, garment.pattern, garment.length, garment.trim or "no")
    pattern = rng.choice(PATTERN_WORDS[garment.pattern])
    if rng.random() < 0.5:
        wrong = other(("short", "long"), garment.length, rng=rng)
        text = f"{garment.colour} {pattern} {garment.kind}, not {wrong}, {trim}"
    else:
        excluded = [name for name in PATTERNS if name != garment.pattern]
        rng.shuffle(excluded)
        neither = f"neither {excluded[0]} nor {excluded[1]} nor {excluded[2]}"
        verb = "are" if garment.kind == "trousers" else "is"
        text = f"{garment.length} {garment.colour} {garment.kind} that {verb} {neither}, {trim}"
    return GarmentUtterance(text, claim, ReasoningKind.NEGATION)
