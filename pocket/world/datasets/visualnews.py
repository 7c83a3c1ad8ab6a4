"""VisualNews: news pictures and captions; the town is recognised by its banner."""

from __future__ import annotations

import random
from dataclasses import dataclass

from pocket.world.builder import LEAST_POOL, RIDDLES, AmbiguityGuard, Book, Target, until
from pocket.world.draw import draw_news
from pocket.world.edits import sample_edit
from pocket.world.encyclopedia import encyclopedia
from pocket.world.language import Utterance, news_caption, news_riddle
from pocket.world.lexicon import other
from pocket.world.scene import Claim, Scene, sample_scene
from schemas.mbeir import SPLITS, DatasetTask, Modality


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


def sample_news(rng: random.Random) -> NewsScene:
    return NewsScene(rng.choice(list(encyclopedia().towns)), sample_scene(rng, most=3))


def _said_of_news(news: NewsScene, rng: random.Random, riddles: float) -> Utterance:
    town = encyclopedia().towns[news.town]
    if rng.random() < riddles:
        born = next(person.name for person in encyclopedia().persons.values() if person.birthplace == news.town)
        return news_riddle(news.scene, town, rng, born)
    return news_caption(news.scene, town, rng)


def _near_news(news: NewsScene, rng: random.Random) -> NewsScene:
    """Draws a near miss: the same scene in another town, or the same town with another scene."""
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
        admitted = AmbiguityGuard()

        def drawn(admitted: AmbiguityGuard = admitted, task_id: int = task_id) -> tuple[NewsScene, Utterance] | None:
            news = sample_news(rng)
            said = _said_of_news(news, rng, RIDDLES if task_id == 0 else 0)
            return (news, said) if admitted.admits(news, [NewsClaim(news.town, said.claim)]) else None

        def near(news: NewsScene, admitted: AmbiguityGuard = admitted, task_id: int = task_id) -> None:
            wrong = _near_news(news, rng)
            said = _said_of_news(wrong, rng, 0)
            # A picture must not fit an earlier caption, and its caption must not fit an earlier picture.
            claims = [NewsClaim(wrong.town, said.claim)] if task_id == 3 else []
            if admitted.admits(wrong, claims):
                add(wrong, said)

        def add(news: NewsScene, said: Utterance, task_id: int = task_id, task: DatasetTask = task) -> str:
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
