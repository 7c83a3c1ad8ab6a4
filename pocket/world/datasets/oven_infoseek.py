"""OVEN and InfoSeek: questions about a picture that need knowledge."""

from __future__ import annotations

import json
import random

from PIL import Image

from pocket.world.builder import Book, Target, until
from pocket.world.datasets.subjects import sample_entity, unseen
from pocket.world.draw import draw_banner, draw_emblems
from pocket.world.encyclopedia import Entity, Town, encyclopedia
from pocket.world.lexicon import SETTINGS
from pocket.world.passages import (
    TOPICS,
    Passage,
    Question,
    one_hop,
    person_passage,
    summary,
    three_hops,
    title,
    topic_passage,
    town_passage,
    two_hops,
    what_is,
    which_of_two,
)
from pocket.world.reasoning_kinds import ReasoningKind
from schemas.mbeir import SPLITS, DatasetTask, Modality, Split

GROUNDED = 0.55
"""Share of OVEN's queries that show two entities and ask for one of them."""

TWO_HOPS = 0.45
"""Share of InfoSeek's queries whose answer is in another subject's passage."""

THREE_HOPS = 0.15
"""Share of InfoSeek's queries whose answer is in the passage of the town where the entity's finder was born."""

_PLACES = {"left": (0.26, 0.5), "right": (0.74, 0.5), "upper": (0.5, 0.26), "lower": (0.5, 0.74)}
_OPPOSITE = {"left": "right", "right": "left", "upper": "lower", "lower": "upper"}
EXTRA_SUBJECTS = 40
"""Number of entities without pictures, whose passages fill InfoSeek's and WebQA's pools."""

_KIND_SHARE = 0.1
"""Share of InfoSeek's queries that the summary answers; OVEN's pool has the same summary."""


class _Library:
    """The texts and pictures that OVEN and InfoSeek share: one summary and one picture per subject."""

    def __init__(self, book: Book) -> None:
        self.book = book
        world = encyclopedia()
        self.summaries = {entity.name: summary(entity, book.rng) for entity in world.entities.values()}
        self.ids = {name: f"Q{4000 + 7 * i}" for i, name in enumerate([*world.entities, *world.towns, *world.persons])}
        self._pictures: dict[str, str] = {}
        self._shown = 0

    def source(self, subject: str) -> str:
        return json.dumps({"wikidata_id": self.ids[subject], "wikipedia_title": title(subject)})

    def picture(self, subject: Entity | Town) -> str:
        """The picture on the subject's page."""
        if subject.name not in self._pictures:
            identifier = self.ids[subject.name]
            path = f"oven_images/wikipedia_images_full/{identifier[:4]}/{identifier}.jpg"
            picture, content = portrait(subject, self.book.rng)
            self._pictures[subject.name] = self.book.image(path, picture, content)
        return self._pictures[subject.name]

    def query_picture(self, shown: dict[str, Entity]) -> str:
        """Draws a new picture of one entity (under any key) or of two at their places."""
        rng = self.book.rng
        self._shown += 1
        identifier = f"{self._shown * 10_007_003 % 100_000_000:08d}"
        places = [_PLACES.get(place, (0.5, 0.5)) for place in shown]
        entities = list(shown.values())
        picture = draw_emblems([entity.emblem for entity in entities], rng.choice(list(SETTINGS)), rng, places=places)
        content = "; ".join(f"{entity.name}{f' {place}' if place else ''}" for place, entity in shown.items())
        return self.book.image(f"oven_images/{identifier[:2]}/{identifier}.jpg", picture, content)


def portrait(subject: Entity | Town, rng: random.Random) -> tuple[Image.Image, str]:
    if isinstance(subject, Town):
        return draw_banner(subject.banner, rng), f"banner of {subject.name}"
    return draw_emblems([subject.emblem], rng.choice(list(SETTINGS)), rng), subject.name


def add_oven_and_infoseek(book: Book) -> None:
    library = _Library(book)
    for infoseek, oven in (
        (DatasetTask("infoseek", 6), DatasetTask("oven", 6)),
        (DatasetTask("infoseek", 8), DatasetTask("oven", 8)),
    ):
        _Paired(book, library, infoseek, oven).write()


class _Paired:
    """One task of OVEN and InfoSeek. Pools come first, because positives may be in the other dataset's pool."""

    def __init__(self, book: Book, library: _Library, infoseek: DatasetTask, oven: DatasetTask) -> None:
        self.book, self.library = book, library
        self.infoseek, self.oven = infoseek, oven
        self.modality = oven.cand_modality

    def write(self) -> None:
        if not self.book.volume:
            self._add_pools()
        for split in SPLITS:
            for _ in range(self.book.count(self.oven, split)):
                self._ask_oven(split)
            for _ in range(self.book.count(self.infoseek, split)):
                self._ask_infoseek(split)

    def _add_pools(self) -> None:
        rng, world = self.book.rng, encyclopedia()
        for entity in world.entities.values():
            self._add(self.oven, self.library.summaries[entity.name], entity)
        subjects = list(world.entities.values())
        for entity in [*world.pictured, *subjects[-EXTRA_SUBJECTS:]]:
            for topic in TOPICS if entity.pictured else (rng.choice(TOPICS),):
                self._add(self.infoseek, topic_passage(entity, topic, rng), entity)
        for town in world.towns.values():
            self._add(self.infoseek, town_passage(town, rng), town)
        if self.modality is Modality.TEXT:
            for person in world.persons.values():
                self._add(self.infoseek, person_passage(person, rng), None)
        for entity in world.pictured:  # the same summaries in both datasets
            self._add(self.infoseek, self.library.summaries[entity.name], entity)

    def _add(self, task: DatasetTask, passage: Passage, pictured: Entity | Town | None) -> None:
        self.book.candidate(
            task.dataset,
            self.modality,
            passage.canonical,
            pool=task.name,
            txt=passage.text,
            img_path=self.library.picture(pictured) if self.modality is Modality.IMAGE_TEXT and pictured is not None else None,
            src_content=self.library.source(passage.subject),
        )

    def _did(self, task: DatasetTask, subject: str, topic: str) -> str:
        return self.book.known(task.name, f"{subject}, {topic}")[0]

    def _ask_oven(self, split: Split) -> None:
        rng = self.book.rng
        entity = sample_entity(split, rng)
        if rng.random() < GROUNDED:
            place = rng.choice(list(_PLACES))
            second = until(lambda: e if (e := sample_entity(split, rng)) is not entity else None, "second entity")
            question = which_of_two(entity, place, rng)
            picture = self.library.query_picture({place: entity, _OPPOSITE[place]: second})
        else:
            question = what_is(entity, rng)
            picture = self.library.query_picture({"": entity})
        # As in M-BEIR, every InfoSeek passage of the same subject is a further positive.
        further = [self._did(self.infoseek, entity.name, topic) for topic in (*TOPICS, "summary")]
        positives = [self._did(self.oven, entity.name, "summary"), *further]
        self._write((split, self.oven), question, positives, picture, entity)

    def _ask_infoseek(self, split: Split) -> None:
        rng, world = self.book.rng, encyclopedia()
        entity = sample_entity(split, rng)
        who, rulers, chance = f"this {entity.kind}", split == "test", rng.random()
        if chance < TWO_HOPS:
            towns_only = self.modality is Modality.IMAGE_TEXT
            question = two_hops(entity, who, world, rng, towns_only=towns_only, rulers=rulers)
        elif chance < TWO_HOPS + THREE_HOPS:
            question = three_hops(entity, who, world, rng, rulers=rulers)
        elif chance < TWO_HOPS + THREE_HOPS + _KIND_SHARE:
            question = Question(
                f"What is the name of {who}?", entity.name, "summary", entity.name, ReasoningKind.NONE, (entity.name,)
            )
        else:
            question = one_hop(entity, who, rng)
        positives = [self._did(self.infoseek, question.subject, question.topic)]
        if question.topic == "summary":
            positives.append(self._did(self.oven, entity.name, "summary"))
        self._write((split, self.infoseek), question, positives, self.library.query_picture({"": entity}), entity)

    def _write(
        self, place: tuple[Split, DatasetTask], question: Question, positives: list[str], picture: str, entity: Entity
    ) -> None:
        content, new = f"{question.subject}, {question.topic}", unseen(entity, question)
        target = Target(content, question.why, question.answer, question.hops, new)
        source = json.dumps({"entity_id": self.library.ids[entity.name]})
        self.book.query(*place, target, positives, txt=question.text, img_path=picture, src_content=source)
