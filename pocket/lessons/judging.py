"""Judging answers: which phrases of an answer a picture or a passage bears out. What verification is made of."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache
from typing import Final

from PIL import Image

from pocket.lessons import seeing
from pocket.lessons.lesson import Judged, Lesson
from pocket.world.encyclopedia import encyclopedia
from pocket.world.lexicon import (
    COLOURS,
    CRAFTS,
    EVENTS,
    GARMENT_KINDS,
    GOODS,
    LENGTHS,
    PATTERNS,
    REGIONS,
    SEASONS,
    SETTINGS,
    SHAPES,
    SIZES,
)
from pocket.world.passages import TOPICS, summary, topic_passage

_BETWEEN: Final = re.compile(r", |: ")
_PLACES: Final = ("left", "right", "upper", "lower", "top", "bottom", "centre")


@cache
def _kin() -> dict[str, list[str]]:
    """Word -> the words that could stand in its place."""
    world = encyclopedia()
    first, last = (sorted(set(words)) for words in zip(*(name.split() for name in world.persons), strict=True))
    rivers = sorted({town.river for town in world.towns.values()})
    regions = [region.split()[-1] for region in REGIONS]
    names = ([entity.name for entity in world.entities.values()], list(world.towns), first, last, rivers, regions)
    plain = (COLOURS, SHAPES, SIZES, SETTINGS, GARMENT_KINDS, PATTERNS, LENGTHS, _PLACES, SEASONS, GOODS, CRAFTS, EVENTS)
    kin: dict[str, list[str]] = {}
    for group in (*plain, *names):
        for word in group:
            kin.setdefault(word, list(group))
    return kin


def phrases(answer: str) -> list[tuple[int, int]]:
    """Start and end of each phrase: what stands between commas and colons."""
    cuts = [match.span() for match in _BETWEEN.finditer(answer)]
    starts, ends = [0, *(stop for _, stop in cuts)], [*(start for start, _ in cuts), len(answer)]
    return list(zip(starts, ends, strict=True))


def judge(answer: str, right: str) -> Judged:
    """`answer` beside the right one: a phrase is right where the right answer has it too."""
    left = [right[start:end] for start, end in phrases(right)]
    ends = []
    for start, end in phrases(answer):
        found = answer[start:end] in left
        if found:
            left.remove(answer[start:end])
        ends.append((end, found))
    if left and all(found for _, found in ends):  # all of it is right and some of it is missing
        ends[-1] = (ends[-1][0], False)
    return Judged(answer, tuple(ends))


def spoil(answer: str, rng: random.Random, chance: float) -> str:
    """Swaps words for others of their kind, each with this chance."""
    kin = _kin()

    def swap(match: re.Match[str]) -> str:
        word = match[0]
        if word not in kin or rng.random() >= chance:
            return word
        return rng.choice([other for other in kin[word] if other != word])

    return re.sub(r"[^\s,:]+", swap, answer)


def spoilt(answer: str, rng: random.Random, *, easy: bool) -> str:
    """A wrong answer made from a right one: one word or several; `easy` ones may have hardly a right word left."""
    words = max(1, len(answer.split()))
    for _ in range(8):
        changed = spoil(answer, rng, rng.choice((0.8, 0.3, 1 / words) if easy else (0.3, 1 / words)))
        if changed != answer:
            return changed
    return "nothing"


def matching_lesson(rng: random.Random, *, easy: bool = True) -> Lesson:
    """One picture or passage and an answer about it, made by changing words of what is there."""
    shown: list[Image.Image] = []
    if rng.random() < 0.7:
        seen = seeing.sample_lesson(rng)
        kind, shown, text, right = seen.skill.split("/")[1], seen.images, "", seen.reply
    else:
        kind, (text, right) = "text", _read(rng)
    answer = right if rng.random() < 0.4 else spoilt(right, rng, easy=easy)
    parts: list[str | Image.Image] = ["Verify: yes or no?\nTarget: ", *shown, f"{text}\nAnswer: {answer}"]
    return judging_lesson(f"match/{kind}", parts, answer, right)


def judging_lesson(skill: str, parts: Sequence[str | Image.Image], answer: str, right: str) -> Lesson:
    judged = judge(answer, right)
    return Lesson(skill, tuple(parts), "yes" if judged.right else "no", judged)


def _read(rng: random.Random) -> tuple[str, str]:
    """A passage and what it says."""
    entity = rng.choice(list(encyclopedia().entities.values()))
    topic = rng.choice(("summary", *TOPICS))
    if topic == "summary":
        return summary(entity, rng).text, f"{entity.name}, {entity.kind}"
    said = {"home": entity.home, "finder": entity.finder, "season": f"{entity.season}, {entity.good}"}[topic]
    return topic_passage(entity, topic, rng).text, f"{entity.name}: {topic}: {said}"
