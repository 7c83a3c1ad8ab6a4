"""Encyclopedia texts: passages that state facts, and questions that ask for them."""

from __future__ import annotations

import random
from typing import Final, NamedTuple

from pocket.world.encyclopedia import Encyclopedia, Entity, Person, Town
from pocket.world.lexicon import article
from pocket.world.reasoning_kinds import ReasoningKind

TOPICS: Final = ("home", "finder", "season")
"""Topics of an entity's passages, besides its summary."""


class Passage(NamedTuple):
    """A text about `topic` of `subject`. Passages with the same subject and topic answer the same questions."""

    subject: str
    topic: str
    text: str

    @property
    def canonical(self) -> str:
        return f"{self.subject}, {self.topic}"


class Question(NamedTuple):
    """A question. `subject` and `topic` name the passage that answers it; `hops` are the facts on the way."""

    text: str
    subject: str
    topic: str
    answer: str
    why: ReasoningKind
    hops: tuple[str, ...]


def title(name: str) -> str:
    return name[0].upper() + name[1:]


def summary(entity: Entity, rng: random.Random) -> Passage:
    """Draws a summary: what an entity is and looks like."""
    name, look = title(entity.name), entity.emblem.words
    text = rng.choice(
        (
            f"{name}. The {entity.name} is {article(entity.kind)} that looks like {article(look)}.",
            f"{name} is the name of {article(entity.kind)}. It is drawn as {article(look)}.",
            f"{name}, {article(entity.kind)}, has the look of {article(look)}.",
        )
    )
    return Passage(entity.name, "summary", text)


def topic_passage(entity: Entity, topic: str, rng: random.Random) -> Passage:
    """Draws a passage with one group of facts about an entity."""
    name = title(entity.name)
    match topic:
        case "home":
            texts = (
                f"{name}: home. The {entity.kind} is at home in {entity.home} and rarely found elsewhere.",
                f"Where the {entity.name} belongs: this {entity.kind} comes from {entity.home}.",
                f"The {entity.name} is known from {entity.home}, its only home.",
            )
        case "finder":
            texts = (
                f"{name}: discovery. The {entity.kind} was first described by {entity.finder}.",
                f"The {entity.name} was made known by {entity.finder}, who described it first.",
                f"It was {entity.finder} who first wrote about the {entity.name}.",
            )
        case _:
            texts = (
                f"{name}: season and use. It is seen in {entity.season} and prized for its {entity.good}.",
                f"The {entity.name} appears in {entity.season}; people value its {entity.good}.",
                f"In {entity.season} the {entity.kind} called {entity.name} yields {entity.good}.",
            )
    return Passage(entity.name, topic, rng.choice(texts))


def town_passage(town: Town, rng: random.Random) -> Passage:
    colours = f"{town.banner[0]} and {town.banner[1]}"
    text = rng.choice(
        (
            f"{town.name} is a town in {town.region} on the river {town.river}. It is ruled by {town.ruler}.",
            f"The town of {town.name}, ruled by {town.ruler}, lies in {town.region} on the {town.river}.",
        )
    )
    return Passage(town.name, "town", f"{text} Its banner is {colours}.")


def person_passage(person: Person, rng: random.Random) -> Passage:
    text = rng.choice(
        (
            f"{person.name} was {article(person.craft)} born in {person.birthplace}.",
            f"Born in {person.birthplace}, {person.name} worked as {article(person.craft)}.",
        )
    )
    return Passage(person.name, "person", text)


def one_hop(entity: Entity, who: str, rng: random.Random) -> Question:
    """Draws a question that one of the entity's own passages answers. `who` is the entity's name, or "this bird"."""
    kinds = {
        "home": (
            entity.home,
            (f"Where is {who} at home?", f"What is the home of {who}?", f"In which town does one find {who}?"),
        ),
        "finder": (entity.finder, (f"Who described {who} first?", f"By whom was {who} made known?")),
        "season": (
            f"{entity.season}, {entity.good}",
            (f"In which season does {who} appear?", f"What is {who} prized for?", f"When is {who} seen?"),
        ),
    }
    topic = rng.choice(list(kinds))
    answer, texts = kinds[topic]
    return Question(rng.choice(texts), entity.name, topic, answer, ReasoningKind.NONE, (f"{entity.name}: {topic}: {answer}",))


def two_hops(
    entity: Entity, who: str, world: Encyclopedia, rng: random.Random, *, towns_only: bool = False, rulers: bool = True
) -> Question:
    """Draws a question about the entity's home town or finder, which another subject's passage answers.

    `rulers`: whether it may ask who rules the town.
    """
    town, person = world.home_of(entity), world.finder_of(entity)
    if towns_only or rng.random() < 0.65:
        choices = (
            (town.region, f"In which part of the land is the home of {who}?"),
            (town.river, f"Which river passes the home town of {who}?"),
            (town.ruler, f"Who rules the town where {who} is at home?"),
        )
        answer, text = rng.choice(choices if rulers else choices[:2])
        hops = (f"{entity.name}: home: {town.name}", f"{town.name}: {answer}")
        return Question(text, town.name, "town", answer, ReasoningKind.MULTI_HOP, hops)
    answer, text = rng.choice(
        (
            (person.craft, f"What was the craft of the one who first described {who}?"),
            (person.birthplace, f"Where was the one who made {who} known born?"),
        )
    )
    hops = (f"{entity.name}: finder: {person.name}", f"{person.name}: {answer}")
    return Question(text, person.name, "person", answer, ReasoningKind.MULTI_HOP, hops)


def three_hops(entity: Entity, who: str, world: Encyclopedia, rng: random.Random, *, rulers: bool = True) -> Question:
    """Draws a question about the town where the entity's finder was born. `rulers`: whether it may ask who rules it."""
    person = world.finder_of(entity)
    town = world.towns[person.birthplace]
    choices = (
        (town.region, f"In which part of the land was the one who first described {who} born?"),
        (town.river, f"Which river passes the town where the one who first described {who} was born?"),
        (town.ruler, f"Who rules the town where the one who made {who} known was born?"),
    )
    answer, text = rng.choice(choices if rulers else choices[:2])
    hops = (f"{entity.name}: finder: {person.name}", f"{person.name}: {town.name}", f"{town.name}: {answer}")
    return Question(text, town.name, "town", answer, ReasoningKind.MULTI_HOP, hops)


def what_is(entity: Entity, rng: random.Random) -> Question:
    """Draws a question for the entity itself."""
    text = rng.choice(("What is this?", "What is it called?", f"Which {entity.kind} is this?", "Can you name this?"))
    return Question(text, entity.name, "summary", entity.name, ReasoningKind.NONE, (entity.name,))


def which_of_two(entity: Entity, place: str, rng: random.Random) -> Question:
    """Draws a question for one of two entities in the picture, by its place."""
    text = rng.choice(
        (f"What is the {place} one?", f"Name the one {_SIDES[place]}.", f"Which thing is the {place} one of the two?")
    )
    return Question(text, entity.name, "summary", entity.name, ReasoningKind.GROUNDING, (place, entity.name))


_SIDES: Final = {"left": "on the left", "right": "on the right", "upper": "at the top", "lower": "at the bottom"}
