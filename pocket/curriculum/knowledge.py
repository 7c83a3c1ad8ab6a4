"""Queries that need knowledge: OVEN, InfoSeek and WebQA; and the news of EDIS."""

from __future__ import annotations

import random
from typing import Final

from pocket.curriculum.difficulty import is_demanding
from pocket.curriculum.solved_query import SolvedQuery, claim_words
from pocket.world.draw import draw_banner, draw_emblems, draw_news
from pocket.world.encyclopedia import Entity, encyclopedia
from pocket.world.language import (
    caption,
)
from pocket.world.lexicon import EVENTS, SETTINGS, other
from pocket.world.passages import (
    Question,
    one_hop,
    person_passage,
    summary,
    three_hops,
    topic_passage,
    town_passage,
    two_hops,
    what_is,
    which_of_two,
)
from pocket.world.reasoning_kinds import ReasoningKind
from pocket.world.scene import sample_scene

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
    """Names the fact that is asked for: ``home``, ``finder``, ``season``, ``name``, or the fact at the end of two hops."""
    if question.topic in ("town", "person"):
        first, last = question.hops[0].split(": ")[1], "about the town" if question.topic == "town" else "about the person"
        return f"{first}, then birthplace, then {last}" if len(question.hops) == 3 else f"{first}, then {last}"
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


def about_picture(rng: random.Random) -> SolvedQuery:
    """Draws an OVEN or InfoSeek query."""
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
    elif chance < 0.88 or not is_demanding():
        question, name = two_hops(entity, who, world, rng, towns_only=both), "infoseek"
    else:
        question, name = three_hops(entity, who, world, rng), "infoseek"
    shown, places = [entity.emblem], [(0.5, 0.5)]
    if place:
        shown.append(other(world.pictured, entity, rng=rng).emblem)
        places = [_PLACES[place], _PLACES[_OPPOSITE[place]]]
    return SolvedQuery(
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


def question_by_name(rng: random.Random) -> SolvedQuery:
    """Draws a WebQA query that a passage answers."""
    world = encyclopedia()
    entity = rng.choice(world.pictured)
    hops = rng.random()
    if is_demanding() and hops < 0.12:
        question = three_hops(entity, f"the {entity.name}", world, rng)
    elif hops < (0.42 if is_demanding() else 0.4):
        question = two_hops(entity, f"the {entity.name}", world, rng)
    else:
        question = one_hop(entity, f"the {entity.name}", rng)
    return SolvedQuery(
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


def picture_by_name(rng: random.Random) -> SolvedQuery:
    """Draws a WebQA query that a captioned picture answers."""
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
        entity, why, steps = any_entity, ReasoningKind.NONE, any_entity.name
    elif chance < 0.8:
        text = f"What colours has the banner of the town where the {entity.name} is at home?"
        town = world.home_of(entity)
        elsewhere = other(list(world.towns), town.name, rng=rng)
        return SolvedQuery(
            "webqa_task2",
            text,
            None,
            ReasoningKind.MULTI_HOP,
            (f"banner of the home of {entity.name}", "captioned picture", f"{entity.name}: home: {town.name}"),
            f"banner of {town.name}",
            (f"banner of {elsewhere}",),
            draw_banner(town.banner, rng),
            f"Banner of {town.name}.",
        )
    else:
        text = f"What does the {entity.kind} from {entity.home} that is prized for its {entity.good} look like?"
        why, steps = ReasoningKind.MULTI_HOP, f"{entity.kind}, {entity.home}, {entity.good}: {entity.name}"
    return SolvedQuery(
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


def report(rng: random.Random) -> SolvedQuery:
    """Draws an EDIS query."""
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
    return SolvedQuery(
        "edis_task2",
        text,
        None,
        ReasoningKind.MULTI_HOP if puzzling else ReasoningKind.NONE,
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
