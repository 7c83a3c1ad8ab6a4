"""WebQA: questions about named entities, answered by passages or captioned pictures."""

from __future__ import annotations

from pocket.world.builder import Book, Target, until
from pocket.world.datasets.oven_infoseek import EXTRA_SUBJECTS, portrait
from pocket.world.encyclopedia import Entity, Town, encyclopedia
from pocket.world.passages import (
    TOPICS,
    Passage,
    Question,
    one_hop,
    person_passage,
    title,
    topic_passage,
    town_passage,
    two_hops,
)
from pocket.world.reasoning_kinds import ReasoningKind
from schemas.mbeir import SPLITS, DatasetTask, Modality


def add_webqa(book: Book) -> None:
    _add_webqa_passages(book)
    _add_webqa_pictures(book)


def _add_webqa_passages(book: Book) -> None:
    task, rng, world = DatasetTask("webqa", 1), book.rng, encyclopedia()
    dids: dict[str, list[str]] = {}

    def add(passage: Passage) -> None:
        did = book.candidate("webqa", Modality.TEXT, passage.canonical, pool=task.name, txt=passage.text)
        dids.setdefault(passage.canonical, []).append(did)

    known = [*world.pictured, *list(world.entities.values())[-EXTRA_SUBJECTS:]]
    for entity in known:
        for topic in TOPICS:
            first = topic_passage(entity, topic, rng)
            add(first)
            second = topic_passage(entity, topic, rng)
            if second.text != first.text and rng.random() < 0.6:
                add(second)
    for town in world.towns.values():
        add(town_passage(town, rng))
    for person in world.persons.values():
        add(person_passage(person, rng))
    asked: set[str] = set()

    def drawn() -> Question | None:
        if rng.random() < 0.25:
            entity = rng.choice(world.pictured)
            question = two_hops(entity, f"the {entity.name}", world, rng)
        else:
            entity = rng.choice(known)
            question = one_hop(entity, f"the {entity.name}", rng)
        return question if question.text not in asked else None

    for split in SPLITS:
        for _ in range(book.count(task, split)):
            question: Question = until(drawn, "question")
            asked.add(question.text)
            content = f"{question.subject}, {question.topic}"
            near = [did for topic in TOPICS for did in dids.get(f"{question.subject}, {topic}", ()) if topic != question.topic]
            target = Target(content, question.why, question.answer, question.hops)
            book.query(split, task, target, dids[content], txt=question.text, negatives=near[:2])


def _add_webqa_pictures(book: Book) -> None:
    task, rng, world = DatasetTask("webqa", 2), book.rng, encyclopedia()
    dids: dict[str, list[str]] = {}
    number = 30_000_000

    def add(subject: Entity | Town) -> None:
        nonlocal number
        number += 11
        picture, content = portrait(subject, rng)
        path = book.image(f"webqa_images/{number}.jpg", picture, content)
        if isinstance(subject, Town):
            texts = (f"Banner of {subject.name}.", f"The banner that {subject.name} flies.")
        else:
            texts = (f"{title(subject.name)}, {subject.kind}.", f"The {subject.kind} called {subject.name}, as it is drawn.")
        did = book.candidate("webqa", Modality.IMAGE_TEXT, content, pool=task.name, txt=rng.choice(texts), img_path=path)
        dids.setdefault(content, []).append(did)

    for entity in world.entities.values():
        add(entity)
        if entity.pictured and rng.random() < 0.3:
            add(entity)
    for town in world.towns.values():
        add(town)
    asked: set[str] = set()

    def drawn() -> tuple[str, str, ReasoningKind, tuple[str, ...]] | None:
        entity = rng.choice(list(world.entities.values()))
        chance = rng.random()
        if chance < 0.72:
            texts = (
                f"What does the {entity.name} look like?",
                f"Is there a picture of the {entity.name}?",
                f"Show the {entity.name}.",
            )
            return rng.choice(texts), entity.name, ReasoningKind.NONE, ()
        entity = rng.choice(world.pictured)
        if chance < 0.86:
            text = f"What colours has the banner of the town where the {entity.name} is at home?"
            return text, f"banner of {entity.home}", ReasoningKind.MULTI_HOP, (f"{entity.name}: home: {entity.home}",)
        fellows = [e for e in world.entities.values() if (e.kind, e.home, e.good) == (entity.kind, entity.home, entity.good)]
        if len(fellows) > 1:
            return None
        text = f"What does the {entity.kind} from {entity.home} that is prized for its {entity.good} look like?"
        return text, entity.name, ReasoningKind.MULTI_HOP, (f"{entity.kind}, {entity.home}, {entity.good}: {entity.name}",)

    for split in SPLITS:
        for _ in range(book.count(task, split)):
            text, content, why, steps = until(
                lambda: found if (found := drawn()) and found[0] not in asked else None, "question"
            )
            asked.add(text)
            book.query(split, task, Target(content, why, steps=steps), dids[content], txt=text)
