"""WebQA: questions about named entities, answered by passages or captioned pictures."""

from __future__ import annotations

from typing import Final

from pocket.world.builder import Book, Target, until
from pocket.world.datasets.oven_infoseek import EXTRA_SUBJECTS, portrait
from pocket.world.datasets.subjects import sample_entity, unseen
from pocket.world.encyclopedia import Entity, Town, encyclopedia
from pocket.world.ground_truth import Unseen
from pocket.world.passages import (
    TOPICS,
    Passage,
    Question,
    one_hop,
    person_passage,
    three_hops,
    title,
    topic_passage,
    town_passage,
    two_hops,
)
from pocket.world.reasoning_kinds import ReasoningKind
from schemas.mbeir import SPLITS, DatasetTask, Modality, Split

THREE_HOPS: Final = 0.05
"""Share of the questions for a passage that take three hops; two hops: TWO_HOPS of them."""

TWO_HOPS: Final = 0.2


def add_webqa(book: Book) -> None:
    _add_webqa_passages(book)
    _add_webqa_pictures(book)


def _add_webqa_passages(book: Book) -> None:
    task, rng, world = DatasetTask("webqa", 1), book.rng, encyclopedia()
    others = list(world.entities.values())[-EXTRA_SUBJECTS:]

    def add(passage: Passage) -> None:
        book.candidate("webqa", Modality.TEXT, passage.canonical, pool=task.name, txt=passage.text)

    def add_passages() -> None:
        for entity in [*world.pictured, *others]:
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

    if not book.volume:
        add_passages()
    asked = book.evaluated_texts(task)

    def drawn(split: Split) -> tuple[Question, Unseen] | None:
        chance, rulers = rng.random(), split == "test"
        if chance < TWO_HOPS + THREE_HOPS:
            entity = sample_entity(split, rng)
            ask = two_hops if chance < TWO_HOPS else three_hops
            question = ask(entity, f"the {entity.name}", world, rng, rulers=rulers)
        else:
            entity = sample_entity(split, rng, further=others)
            question = one_hop(entity, f"the {entity.name}", rng)
        return (question, unseen(entity, question)) if question.text not in asked else None

    for split in SPLITS:
        for _ in range(book.count(task, split)):
            question, new = until(lambda split=split: drawn(split), "question")  # type: ignore[misc]
            asked.add(question.text)
            content = f"{question.subject}, {question.topic}"
            near = [
                did
                for topic in TOPICS
                for did in book.known(task.name, f"{question.subject}, {topic}")
                if topic != question.topic
            ]
            target = Target(content, question.why, question.answer, question.hops, new)
            book.query(split, task, target, book.known(task.name, content), txt=question.text, negatives=near[:2])


def _add_webqa_pictures(book: Book) -> None:
    task, rng, world = DatasetTask("webqa", 2), book.rng, encyclopedia()
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
        book.candidate("webqa", Modality.IMAGE_TEXT, content, pool=task.name, txt=rng.choice(texts), img_path=path)

    def add_pictures() -> None:
        for entity in world.entities.values():
            add(entity)
            if entity.pictured and rng.random() < 0.3:
                add(entity)
        for town in world.towns.values():
            add(town)

    if not book.volume:
        add_pictures()
    asked = book.evaluated_texts(task)
    others = [entity for entity in world.entities.values() if not entity.pictured]

    def drawn(split: Split) -> tuple[str, Target] | None:
        entity = sample_entity(split, rng, further=others)
        chance = rng.random()
        if chance < 0.72:
            texts = (
                f"What does the {entity.name} look like?",
                f"Is there a picture of the {entity.name}?",
                f"Show the {entity.name}.",
            )
            return rng.choice(texts), Target(entity.name, unseen=unseen(entity))
        entity = sample_entity(split, rng)
        if chance < 0.86:
            text = f"What colours has the banner of the town where the {entity.name} is at home?"
            steps = (f"{entity.name}: home: {entity.home}",)
            return text, Target(f"banner of {entity.home}", ReasoningKind.MULTI_HOP, steps=steps, unseen=unseen(entity))
        fellows = [e for e in world.entities.values() if (e.kind, e.home, e.good) == (entity.kind, entity.home, entity.good)]
        if len(fellows) > 1:
            return None
        text = f"What does the {entity.kind} from {entity.home} that is prized for its {entity.good} look like?"
        steps = (f"{entity.kind}, {entity.home}, {entity.good}: {entity.name}",)
        return text, Target(entity.name, ReasoningKind.MULTI_HOP, steps=steps, unseen=unseen(entity))

    def new(split: Split) -> tuple[str, Target] | None:
        question = drawn(split)
        return question if question is not None and question[0] not in asked else None

    for split in SPLITS:
        for _ in range(book.count(task, split)):
            text, target = until(lambda split=split: new(split), "question")  # type: ignore[misc]
            asked.add(text)
            book.query(split, task, target, book.known(task.name, target.content), txt=text)
