"""EDIS: from a news text to a picture with headline."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pocket.world.builder import LEAST_POOL, RIDDLES, AmbiguityGuard, Book, Target, until
from pocket.world.datasets.visualnews import NewsClaim, NewsScene, sample_news
from pocket.world.draw import draw_news
from pocket.world.encyclopedia import Town, encyclopedia
from pocket.world.language import caption
from pocket.world.lexicon import EVENTS, WITNESSES, article, other
from pocket.world.reasoning_kinds import ReasoningKind
from schemas.mbeir import SPLITS, DatasetTask, Modality


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
    admitted = AmbiguityGuard()

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

    def drawn() -> tuple[Report, str, ReasoningKind, Town] | None:
        report = Report(rng.choice(EVENTS), sample_news(rng))
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
        return report, text, ReasoningKind.MULTI_HOP if puzzling else ReasoningKind.NONE, town

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
