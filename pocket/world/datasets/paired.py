"""Datasets whose query and candidate describe the same picture: VisualNews, MSCOCO, Fashion200K, EDIS, NIGHTS."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Final

from pocket.world.builder import LEAST_POOL, SPLITS, Book, Split, Target, Unambiguous, until
from pocket.world.draw import draw_garment, draw_news, draw_scene
from pocket.world.edits import sample_edit
from pocket.world.encyclopedia import Town, encyclopedia
from pocket.world.garment import Garment, sample_garment
from pocket.world.garment_edits import sample_garment_edit
from pocket.world.language import Said, aside, caption, garment_caption, garment_riddle, news_caption, news_riddle, riddle
from pocket.world.lexicon import EVENTS, WITNESSES, article, other
from pocket.world.reasoning_kinds import Why
from pocket.world.scene import Claim, Scene, sample_scene
from schemas.mbeir import DatasetTask, Modality

RIDDLES: Final = 0.25
"""Share of text queries that take a deduction."""

CAPTIONS: Final = 5
"""MSCOCO has five captions a picture."""


# VisualNews: news pictures and captions; the town shows in its banner


@dataclass(frozen=True, slots=True)
class NewsScene:
    town: str
    scene: Scene

    @property
    def canonical(self) -> str:
        return f"{self.town}: {self.scene.canonical}"


@dataclass(frozen=True, slots=True)
class NewsClaim:
    town: str
    claim: Claim

    def matches(self, news: NewsScene) -> bool:
        return news.town == self.town and self.claim.matches(news.scene)


def _sample_news(rng: random.Random) -> NewsScene:
    return NewsScene(rng.choice(list(encyclopedia().towns)), sample_scene(rng, most=3))


def _said_of_news(news: NewsScene, rng: random.Random, riddles: float) -> Said:
    town = encyclopedia().towns[news.town]
    if rng.random() < riddles:
        born = next(person.name for person in encyclopedia().persons.values() if person.birthplace == news.town)
        return news_riddle(news.scene, town, rng, born)
    return news_caption(news.scene, town, rng)


def _near_news(news: NewsScene, rng: random.Random) -> NewsScene:
    """The same scene in another town, or the town with another scene."""
    if rng.random() < 0.5:
        return NewsScene(other(list(encyclopedia().towns), news.town, rng=rng), news.scene)
    return NewsScene(news.town, sample_edit(news.scene, rng, simple=0).target)


def add_visualnews(book: Book) -> None:
    rng, number = book.rng, 0

    def picture(news: NewsScene) -> str:
        nonlocal number
        number += 1
        banner = encyclopedia().towns[news.town].banner
        return book.image(
            f"visualnews_images/pocket/images/{number:04d}.jpg", draw_news(news.scene, banner, rng), news.canonical
        )

    for task_id in (0, 3):
        task = DatasetTask("visualnews", task_id)
        admitted = Unambiguous()

        def drawn(admitted: Unambiguous = admitted, task_id: int = task_id) -> tuple[NewsScene, Said] | None:
            news = _sample_news(rng)
            said = _said_of_news(news, rng, RIDDLES if task_id == 0 else 0)
            return (news, said) if admitted.admits(news, [NewsClaim(news.town, said.claim)]) else None

        def near(news: NewsScene, admitted: Unambiguous = admitted, task_id: int = task_id) -> None:
            wrong = _near_news(news, rng)
            said = _said_of_news(wrong, rng, 0)
            # A picture alone must not fit an earlier caption; as a caption it must not fit an earlier picture.
            claims = [NewsClaim(wrong.town, said.claim)] if task_id == 3 else []
            if admitted.admits(wrong, claims):
                add(wrong, said)

        def add(news: NewsScene, said: Said, task_id: int = task_id, task: DatasetTask = task) -> str:
            if task_id == 0:
                return book.candidate("visualnews", Modality.IMAGE, news.canonical, pool=task.name, img_path=picture(news))
            return book.candidate("visualnews", Modality.TEXT, news.canonical, pool=task.name, txt=said.text)

        for split in SPLITS:
            for _ in range(book.count(task, split)):
                news, said = until(drawn, "news picture")
                did = add(news, said)
                if task_id == 0:
                    target = Target(news.canonical, said.why, steps=(news.town,) if said.why.needs_reasoning else ())
                    book.query(split, task, target, [did], txt=said.text)
                else:
                    book.query(split, task, Target(news.canonical), [did], img_path=picture(news))
                near(news)
        while book.pool_size(task.name) < LEAST_POOL:
            add(*until(drawn, "news picture"))


# MSCOCO: everyday scenes; five captions a picture, pools per split, training candidates in the global pool only


def add_mscoco(book: Book) -> None:
    rng, number = book.rng, 0

    def picture(scene: Scene, split: Split) -> str:
        nonlocal number
        number += 1
        folder = "train2014" if split == "train" else "val2014"
        return book.image(f"mscoco_images/{folder}/COCO_{folder}_{number:012d}.jpg", draw_scene(scene, rng), scene.canonical)

    for split in SPLITS:
        task = DatasetTask("mscoco", 0)
        pool = None if split == "train" else f"{task.name}_{split}"
        admitted = Unambiguous()

        def drawn(admitted: Unambiguous = admitted) -> tuple[Scene, Said] | None:
            scene = sample_scene(rng, least=2)
            said = (riddle(scene, rng) if rng.random() < RIDDLES else None) or caption(scene, rng)
            said = Said(aside(said.text, rng), said.claim, said.why)
            return (scene, said) if admitted.admits(scene, [said.claim]) else None

        def near(scene: Scene, admitted: Unambiguous = admitted) -> Scene | None:
            wrong = sample_edit(scene, rng, simple=0).target
            return wrong if admitted.admits(wrong) else None

        for _ in range(book.count(task, split)):
            scene, said = until(drawn, "scene")
            did = book.candidate("mscoco", Modality.IMAGE, scene.canonical, pool=pool, img_path=picture(scene, split))
            book.query(split, task, Target(scene.canonical, said.why), [did], txt=said.text)
            wrong = near(scene)
            if wrong is not None and pool is not None:
                book.candidate("mscoco", Modality.IMAGE, wrong.canonical, pool=pool, img_path=picture(wrong, split))
        while pool is not None and book.pool_size(pool) < LEAST_POOL:
            scene, _ = until(drawn, "scene")
            book.candidate("mscoco", Modality.IMAGE, scene.canonical, pool=pool, img_path=picture(scene, split))

    for split in SPLITS:
        task = DatasetTask("mscoco", 3)
        pool = None if split == "train" else f"{task.name}_{split}"
        admitted = Unambiguous()

        def captioned(admitted: Unambiguous = admitted) -> tuple[Scene, list[str]] | None:
            scene = sample_scene(rng, least=2)
            said = [caption(scene, rng) for _ in range(CAPTIONS)]
            if not admitted.admits(scene, [s.claim for s in said]):
                return None
            return scene, [aside(s.text, rng) for s in said]

        def add(scene: Scene, texts: list[str], pool: str | None = pool) -> list[str]:
            return [book.candidate("mscoco", Modality.TEXT, scene.canonical, pool=pool, txt=text) for text in texts]

        for _ in range(book.count(task, split)):
            scene, texts = until(captioned, "captioned scene")
            book.query(split, task, Target(scene.canonical), add(scene, texts), img_path=picture(scene, split))
        while pool is not None and book.pool_size(pool) < LEAST_POOL * CAPTIONS - 200:
            add(*until(captioned, "captioned scene"))


# Fashion200K: products; some are photographed twice


def add_fashion200k(book: Book) -> None:
    rng, number = book.rng, 0

    def pictures(garment: Garment, count: int) -> list[str]:
        nonlocal number
        number += 1
        folder = f"fashion200k_images/{garment.kind}/{garment.colour}/{number:06d}"
        return [
            book.image(f"{folder}/{number:06d}_{n}.jpg", draw_garment(garment, rng), garment.canonical) for n in range(count)
        ]

    for task_id in (0, 3):
        task = DatasetTask("fashion200k", task_id)
        admitted = Unambiguous()

        def drawn(admitted: Unambiguous = admitted, task_id: int = task_id) -> tuple[Garment, str, Why] | None:
            garment = sample_garment(rng)
            puzzling = task_id == 0 and rng.random() < RIDDLES
            said = garment_riddle(garment, rng) if puzzling else garment_caption(garment, rng)
            return (garment, said.text, said.why) if admitted.admits(garment, [said.claim]) else None

        def add(garment: Garment, text: str, count: int, task: DatasetTask = task) -> list[str]:
            if task.task_id == 3:
                return [book.candidate("fashion200k", Modality.TEXT, garment.canonical, pool=task.name, txt=text)]
            return [
                book.candidate("fashion200k", Modality.IMAGE, garment.canonical, pool=task.name, img_path=path)
                for path in pictures(garment, count)
            ]

        for split in SPLITS:
            for _ in range(book.count(task, split)):
                garment, text, why = until(drawn, "garment")
                if task_id == 0:
                    book.query(
                        split,
                        task,
                        Target(garment.canonical, why),
                        add(garment, text, 2 if rng.random() < 0.2 else 1),
                        txt=text,
                    )
                else:
                    shown = pictures(garment, 1)[0]
                    book.query(split, task, Target(garment.canonical), add(garment, text, 1), img_path=shown)
                wrong = sample_garment_edit(garment, rng, simple=0).target
                said = garment_caption(wrong, rng)
                if admitted.admits(wrong, [said.claim] if task_id == 3 else []):
                    add(wrong, said.text, 1)
        while book.pool_size(task.name) < LEAST_POOL + 40:
            garment, text, _ = until(drawn, "garment")
            add(garment, text, 1)


# EDIS: news text to picture and headline


@dataclass(frozen=True, slots=True)
class Report:
    event: str
    news: NewsScene

    @property
    def canonical(self) -> str:
        return f"{self.event}, {self.news.canonical}"


@dataclass(frozen=True, slots=True)
class ReportClaim:
    event: str
    claim: NewsClaim

    def matches(self, report: Report) -> bool:
        return report.event == self.event and self.claim.matches(report.news)


def add_edis(book: Book) -> None:
    task, rng, number = DatasetTask("edis", 2), book.rng, 0
    admitted = Unambiguous()

    def candidate(report: Report) -> str:
        nonlocal number
        number += 1
        town = encyclopedia().towns[report.news.town]
        path = book.image(f"edis_images/{number:05d}.jpg", draw_news(report.news.scene, town.banner, rng), report.canonical)
        who = rng.choice(WITNESSES)
        headline = rng.choice(
            (
                f"{report.event.capitalize()} in {town.name}: what the {who} saw.",
                f"{town.name} after the {report.event}, in the words of its {who}.",
                f"{article(report.event).capitalize()} in {town.name} keeps the {who} busy.",
            )
        )
        return book.candidate("edis", Modality.IMAGE_TEXT, report.canonical, pool=task.name, txt=headline, img_path=path)

    def drawn() -> tuple[Report, str, Why, Town] | None:
        report = Report(rng.choice(EVENTS), _sample_news(rng))
        town = encyclopedia().towns[report.news.town]
        said = caption(report.news.scene, rng)
        puzzling = rng.random() < RIDDLES
        named = f"the town ruled by {town.ruler}" if puzzling else town.name
        seen = said.text.removeprefix("a picture of ").removeprefix("we see ")
        text = rng.choice(
            (
                f"After the {report.event} in {named}, {seen} stood in the square.",
                f"{seen[0].upper()}{seen[1:]} marked the {report.event} in {named}.",
            )
        )
        if not admitted.admits(report, [ReportClaim(report.event, NewsClaim(town.name, said.claim))]):
            return None
        return report, text, Why.MULTI_HOP if puzzling else Why.NONE, town

    for split in SPLITS:
        for _ in range(book.count(task, split)):
            report, text, why, town = until(drawn, "news report")
            positives = [candidate(report) for _ in range(rng.choice((1, 1, 1, 2)))]
            elsewhere = replace(
                report, news=NewsScene(other(list(encyclopedia().towns), town.name, rng=rng), report.news.scene)
            )
            changed = replace(report, event=other(EVENTS, report.event, rng=rng))
            negatives = [candidate(wrong) for wrong in (elsewhere, changed) if rng.random() < 0.6 and admitted.admits(wrong)]
            steps = (town.name,) if why.needs_reasoning else ()
            book.query(split, task, Target(report.canonical, why, steps=steps), positives, txt=text, negatives=negatives)
    while book.pool_size(task.name) < LEAST_POOL + 160:
        report, _, _, _ = until(drawn, "news report")
        candidate(report)


# NIGHTS: look-alikes; the same scene in another light and place, beside scenes that differ in one thing


def add_nights(book: Book) -> None:
    task, rng, number = DatasetTask("nights", 4), book.rng, 0
    admitted = Unambiguous()

    def distorted(scene: Scene, place: int) -> str:
        path = f"nights_images/distort/{number // 100:03d}/{number:05d}_{place}.jpg"
        shown = book.image(path, draw_scene(scene, rng, jitter=3.0), scene.canonical)
        return book.candidate("nights", Modality.IMAGE, scene.canonical, pool=task.name, img_path=shown)

    def drawn() -> Scene | None:
        scene = sample_scene(rng, least=2)
        return scene if admitted.admits(scene) else None

    def near(scene: Scene) -> Scene | None:
        wrong = sample_edit(scene, rng, simple=0).target
        return wrong if admitted.admits(wrong) else None

    for split in SPLITS:
        for _ in range(book.count(task, split)):
            scene = until(drawn, "scene")
            number += 1
            positive = distorted(scene, 0)
            if (wrong := near(scene)) is not None:
                distorted(wrong, 1)
            reference = book.image(f"nights_images/ref/{number:05d}.jpg", draw_scene(scene, rng, jitter=0), scene.canonical)
            book.query(split, task, Target(scene.canonical), [positive], img_path=reference)
    while book.pool_size(task.name) < LEAST_POOL:
        number += 1
        distorted(until(drawn, "scene"), 0)
