"""Retrieval queries as a world has them, but endless and with everything known: the right trace, the target, wrong answers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from PIL import Image

from pocket.world.draw import draw_banner, draw_emblems, draw_garment, draw_news, draw_scene
from pocket.world.edits import sample_edit, sample_garment_edit
from pocket.world.encyclopedia import Entity, encyclopedia
from pocket.world.garment import Garment, GarmentClaim, sample_garment
from pocket.world.instructions import INSTRUCTIONS
from pocket.world.language import (
    aside,
    caption,
    garment_caption,
    garment_riddle,
    news_caption,
    news_riddle,
    riddle,
)
from pocket.world.lexicon import CELLS, COLOURS, EVENTS, NUMBERS, SETTINGS, other
from pocket.world.passages import (
    Question,
    one_hop,
    person_passage,
    summary,
    topic_passage,
    town_passage,
    two_hops,
    what_is,
    which_of_two,
)
from pocket.world.reasons import Why
from pocket.world.scene import Claim, Scene, sample_scene


@dataclass(frozen=True, slots=True)
class Known:
    """A query and what is known about it.

    `facets` are the texts of the family's facets in order; `wrong` are answers that a careless teacher might give;
    `target` is what the verifier is shown: a picture, a text, or both.
    """

    dataset_task: str
    text: str
    picture: Image.Image | None
    why: Why
    facets: tuple[str, ...]
    answer: str
    wrong: tuple[str, ...]
    target_picture: Image.Image | None = None
    target_text: str = ""

    @property
    def instruction_choices(self) -> tuple[str, ...]:
        return INSTRUCTIONS[self.dataset_task]


# Words for what a text says, in canonical form


def claim_words(claim: Claim) -> str:
    """``small red circle top left, blue square, night``: what a claim says, and no more."""
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


def _count(things: int, setting: str | None) -> str:
    return f"{NUMBERS[things]} {'thing' if things == 1 else 'things'}{f', {setting}' if setting else ''}"


def _other_scene(scene: Scene, rng: random.Random) -> Scene:
    return sample_edit(scene, rng, simple=0).target


def _other_claim(claim: Claim, rng: random.Random) -> str:
    """The claim's words with one attribute wrong."""
    index = rng.randrange(len(claim.things))
    words = claim_words(claim).split(", ")
    partial = claim.things[index]
    if partial.colour is not None:
        words[index] = words[index].replace(partial.colour, other(list(COLOURS), partial.colour, rng=rng))
    return ", ".join(words)


# Visual


def scene_from_text(rng: random.Random) -> Known:
    scene = sample_scene(rng, least=2)
    said = (riddle(scene, rng) if rng.random() < 0.4 else None) or caption(scene, rng)
    words = claim_words(said.claim)
    return Known(
        "mscoco_task0",
        aside(said.text, rng),
        None,
        said.why,
        (words, _count(len(said.claim.things), said.claim.setting)),
        words,
        (_other_claim(said.claim, rng),),
        draw_scene(scene, rng),
    )


def scene_from_picture(rng: random.Random) -> Known:
    scene = sample_scene(rng, least=2)
    alike = rng.random() < 0.4
    return Known(
        "nights_task4" if alike else "mscoco_task3",
        "",
        draw_scene(scene, rng),
        Why.NONE,
        (scene.canonical, _count(len(scene.things), scene.setting)),
        scene.canonical,
        (_other_scene(scene, rng).canonical,),
        draw_scene(scene, rng, jitter=3) if alike else None,
        "" if alike else caption(scene, rng).text,
    )


def news_from_text(rng: random.Random) -> Known:
    world = encyclopedia()
    town, scene = rng.choice(list(world.towns.values())), sample_scene(rng, most=3)
    if rng.random() < 0.35:
        born = next(person.name for person in world.persons.values() if person.birthplace == town.name)
        said = news_riddle(scene, town, rng, born)
    else:
        said = news_caption(scene, town, rng)
    words = f"{town.name}: {claim_words(said.claim)}"
    elsewhere = other(list(world.towns), town.name, rng=rng)
    return Known(
        "visualnews_task0",
        said.text,
        None,
        said.why,
        (words, f"{town.name}, {_count(len(said.claim.things), said.claim.setting)}"),
        words,
        (f"{elsewhere}: {claim_words(said.claim)}", f"{town.name}: {_other_claim(said.claim, rng)}"),
        draw_news(scene, town.banner, rng),
    )


def news_from_picture(rng: random.Random) -> Known:
    world = encyclopedia()
    town, scene = rng.choice(list(world.towns.values())), sample_scene(rng, most=3)
    words = f"{town.name}: {scene.canonical}"
    return Known(
        "visualnews_task3",
        "",
        draw_news(scene, town.banner, rng),
        Why.NONE,
        (words, f"{town.name}, {_count(len(scene.things), scene.setting)}"),
        words,
        (
            f"{other(list(world.towns), town.name, rng=rng)}: {scene.canonical}",
            f"{town.name}: {_other_scene(scene, rng).canonical}",
        ),
        None,
        news_caption(scene, town, rng).text,
    )


def garment_from_text(rng: random.Random) -> Known:
    garment = sample_garment(rng)
    said = garment_riddle(garment, rng) if rng.random() < 0.4 else garment_caption(garment, rng)
    words = garment_words(said.claim)
    wrong = words.replace(garment.colour, other(list(COLOURS), garment.colour, garment.trim or "", rng=rng), 1)
    return Known(
        "fashion200k_task0", said.text, None, said.why, (words, garment.kind), words, (wrong,), draw_garment(garment, rng)
    )


def garment_from_picture(rng: random.Random) -> Known:
    garment = sample_garment(rng)
    return Known(
        "fashion200k_task3",
        "",
        draw_garment(garment, rng),
        Why.NONE,
        (garment.canonical, garment.kind),
        garment.canonical,
        (_other_garment(garment, rng),),
        None,
        garment_caption(garment, rng).text,
    )


def _other_garment(garment: Garment, rng: random.Random) -> str:
    return sample_garment_edit(garment, rng, simple=0).target.canonical


# Composed


def edited_scene(rng: random.Random) -> Known:
    scene = sample_scene(rng)
    edit = sample_edit(scene, rng)
    kept = [str(thing) for thing in scene.things if thing in edit.target.things]
    kept += [scene.setting] if scene.setting == edit.target.setting and edit.why is not Why.NONE else []
    misread = sample_edit(scene, rng, simple=0).target.canonical
    confused = sample_edit(edit.target, rng, simple=0).target.canonical
    return Known(
        "cirr_task7",
        edit.text,
        draw_scene(scene, rng),
        edit.why,
        (scene.canonical, "everything changes" if edit.why is Why.NONE else edit.operation, ", ".join(kept) or "nothing"),
        edit.target.canonical,
        tuple(wrong for wrong in (misread, confused, scene.canonical) if wrong != edit.target.canonical),
        draw_scene(edit.target, rng),
    )


def edited_garment(rng: random.Random) -> Known:
    garment = sample_garment(rng)
    edit = sample_garment_edit(garment, rng)
    pairs = [
        (name, getattr(garment, name), getattr(edit.target, name)) for name in ("length", "colour", "pattern", "kind", "trim")
    ]
    kept = [f"{old or 'no'} trim" if name == "trim" else old for name, old, new in pairs if old == new]
    confused = _other_garment(edit.target, rng)
    return Known(
        "fashioniq_task7",
        edit.text,
        draw_garment(garment, rng),
        edit.why,
        (
            garment.canonical,
            "everything changes" if edit.why is Why.NONE else edit.operation,
            ", ".join(kept) if kept and edit.why is not Why.NONE else "nothing",
        ),
        edit.target.canonical,
        tuple(wrong for wrong in (_other_garment(garment, rng), confused, garment.canonical) if wrong != edit.target.canonical),
        draw_garment(edit.target, rng),
    )


# Knowledge


_PLACES: Final = {"left": (0.26, 0.5), "right": (0.74, 0.5), "upper": (0.5, 0.26), "lower": (0.5, 0.74)}
_OPPOSITE: Final = {"left": "right", "right": "left", "upper": "lower", "lower": "upper"}


def _passage(subject: str, topic: str, rng: random.Random) -> str:
    world = encyclopedia()
    if topic == "town":
        return town_passage(world.towns[subject], rng).text
    if topic == "person":
        return person_passage(world.persons[subject], rng).text
    entity = world.entities[subject]
    return (summary(entity, rng) if topic == "summary" else topic_passage(entity, topic, rng)).text


def _asked(question: Question) -> str:
    """``home``, ``finder``, ``season``, ``name``, or the fact at the end of two hops."""
    if question.topic in ("town", "person"):
        first, second = question.hops[0].split(": ")[1], "about the town" if question.topic == "town" else "about the person"
        return f"{first}, then {second}"
    return "name" if question.topic == "summary" else question.topic


def _answer(question: Question, subject: Entity) -> str:
    if question.topic == "summary":
        return subject.canonical
    return f"{question.subject}: {question.answer}" if question.topic in ("town", "person") else question.hops[0]


def _wrong_answers(question: Question, entity: Entity, rng: random.Random) -> tuple[str, ...]:
    world = encyclopedia()
    stranger = other(world.pictured, entity, rng=rng)
    if question.topic == "summary":
        return (stranger.canonical,)
    if question.topic in ("town", "person"):
        twisted = [
            _answer(q, e)
            for e in (entity, stranger)
            for _ in range(2)
            if (q := two_hops(e, "it", world, rng)).answer != question.answer
        ]
        return tuple(twisted) or (stranger.canonical,)
    near = [q.hops[0] for e in (entity, stranger) for _ in range(2) if (q := one_hop(e, "it", rng)).hops != question.hops]
    return tuple(near) or (stranger.canonical,)


def about_picture(rng: random.Random) -> Known:
    """OVEN and InfoSeek."""
    world = encyclopedia()
    entity = rng.choice(world.pictured)
    who, both = f"this {entity.kind}", rng.random() < 0.5
    place = ""
    chance = rng.random()
    if chance < 0.25:
        question, name = what_is(entity, rng), "oven"
    elif chance < 0.45:
        place = rng.choice(list(_PLACES))
        question, name = which_of_two(entity, place, rng), "oven"
    elif chance < 0.65:
        question, name = one_hop(entity, who, rng), "infoseek"
    else:
        question, name = two_hops(entity, who, world, rng, towns_only=both), "infoseek"
    shown, places = [entity.emblem], [(0.5, 0.5)]
    if place:
        shown.append(other(world.pictured, entity, rng=rng).emblem)
        places = [_PLACES[place], _PLACES[_OPPOSITE[place]]]
    return Known(
        f"{name}_task{8 if both else 6}",
        question.text,
        draw_emblems(shown, rng.choice(list(SETTINGS)), rng, places=places),
        question.why,
        (f"{f'{place}: ' if place else ''}{entity.canonical}", _asked(question), ", ".join(question.hops)),
        _answer(question, entity),
        _wrong_answers(question, entity, rng),
        None,
        _passage(question.subject, question.topic, rng),
    )


# Text


def question_by_name(rng: random.Random) -> Known:
    """WebQA's passages."""
    world = encyclopedia()
    entity = rng.choice(world.pictured)
    if rng.random() < 0.4:
        question = two_hops(entity, f"the {entity.name}", world, rng)
    else:
        question = one_hop(entity, f"the {entity.name}", rng)
    return Known(
        "webqa_task1",
        question.text,
        None,
        question.why,
        (f"{entity.name}, {_asked(question)}", f"entry on {question.subject}", ", ".join(question.hops)),
        _answer(question, entity),
        _wrong_answers(question, entity, rng),
        None,
        _passage(question.subject, question.topic, rng),
    )


def picture_by_name(rng: random.Random) -> Known:
    """WebQA's captioned pictures."""
    world = encyclopedia()
    entity = rng.choice(world.pictured)
    stranger = other(world.pictured, entity, rng=rng)
    chance = rng.random()
    if chance < 0.6:
        any_entity = rng.choice(list(world.entities.values()))
        text = rng.choice(
            (
                f"What does the {any_entity.name} look like?",
                f"Is there a picture of the {any_entity.name}?",
                f"Show the {any_entity.name}.",
            )
        )
        entity, why, steps = any_entity, Why.NONE, any_entity.name
    elif chance < 0.8:
        text = f"What colours has the banner of the town where the {entity.name} is at home?"
        town = world.home_of(entity)
        elsewhere = other(list(world.towns), town.name, rng=rng)
        return Known(
            "webqa_task2",
            text,
            None,
            Why.MULTI_HOP,
            (f"banner of the home of {entity.name}", "captioned picture", f"{entity.name}: home: {town.name}"),
            f"banner of {town.name}",
            (f"banner of {elsewhere}",),
            draw_banner(town.banner, rng),
            f"Banner of {town.name}.",
        )
    else:
        text = f"What does the {entity.kind} from {entity.home} that is prized for its {entity.good} look like?"
        why, steps = Why.MULTI_HOP, f"{entity.kind}, {entity.home}, {entity.good}: {entity.name}"
    return Known(
        "webqa_task2",
        text,
        None,
        why,
        (f"look of {entity.name}", "captioned picture", steps),
        f"picture of {entity.name}",
        (f"picture of {stranger.name}",),
        draw_emblems([entity.emblem], rng.choice(list(SETTINGS)), rng),
        f"{entity.name[0].upper()}{entity.name[1:]}, {entity.kind}.",
    )


def report(rng: random.Random) -> Known:
    """EDIS."""
    world = encyclopedia()
    town, scene, event = rng.choice(list(world.towns.values())), sample_scene(rng, most=3), rng.choice(EVENTS)
    said = caption(scene, rng)
    puzzling = rng.random() < 0.4
    named = f"the town ruled by {town.ruler}" if puzzling else town.name
    seen = said.text.removeprefix("a picture of ").removeprefix("we see ")
    text = rng.choice(
        (
            f"After the {event} in {named}, {seen} stood in the square.",
            f"{seen[0].upper()}{seen[1:]} marked the {event} in {named}.",
        )
    )
    words = f"{event} in {town.name}: {claim_words(said.claim)}"
    elsewhere = other(list(world.towns), town.name, rng=rng)
    changed = other(EVENTS, event, rng=rng)
    return Known(
        "edis_task2",
        text,
        None,
        Why.MULTI_HOP if puzzling else Why.NONE,
        (f"news of the {event}", "headline with picture", f"{town.name}, {event}"),
        words,
        (words.replace(town.name, elsewhere), words.replace(event, changed)),
        draw_news(scene, town.banner, rng),
        rng.choice(
            (
                f"{event.capitalize()} in {town.name}: what the visitors saw.",
                f"{town.name} after the {event}, in the words of its farmers.",
            )
        ),
    )


KINDS: Final[tuple[tuple[Callable[[random.Random], Known], float], ...]] = (
    (edited_scene, 5.0),
    (edited_garment, 2.5),
    (about_picture, 4.0),
    (question_by_name, 1.5),
    (picture_by_name, 0.8),
    (report, 0.8),
    (scene_from_text, 1.2),
    (scene_from_picture, 1.5),
    (news_from_text, 1.0),
    (news_from_picture, 1.2),
    (garment_from_text, 0.7),
    (garment_from_picture, 1.0),
)
"""Every kind of query with its share among the lessons."""


def sample_known(rng: random.Random) -> Known:
    kinds, weights = zip(*KINDS, strict=True)
    known: Known = rng.choices(kinds, weights)[0](rng)
    return known
