"""Lessons in judging answers: which words of an answer a picture or passage supports. The basis of verification."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import Final

from PIL import Image

from pocket.curriculum import perception
from pocket.curriculum.example import Judged, Lesson
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

_WORD: Final = re.compile(r"[^\s,:]+")
_PLACES: Final = ("left", "right", "upper", "lower", "top", "bottom", "centre")


@cache
def _kin() -> dict[str, list[str]]:
    """Word -> the words that could replace it."""
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


def judge(answer: str, truth: str) -> Judged:
    """Compares `answer` with the correct one, word by word.

    A word is correct if it belongs to the longest common subsequence. If something is missing, the word after it is wrong, or
    the end.
    """
    found, wanted = list(_WORD.finditer(answer)), _WORD.findall(truth)
    right, missing = [False] * len(found), set()
    steps = SequenceMatcher(None, [match[0] for match in found], wanted, autojunk=False).get_opcodes()
    for step, start, stop, _, _ in steps:
        if step == "equal":
            right[start:stop] = [True] * (stop - start)
        elif step == "insert":
            missing.add(start)
    words = tuple((match.end(), right[i] and i not in missing) for i, match in enumerate(found))
    return Judged(answer, truth, words, complete=len(found) not in missing)


def swap_words(answer: str, rng: random.Random, chance: float) -> str:
    """Replaces words by others of their kind, each with probability `chance`."""
    kin = _kin()

    def swap(match: re.Match[str]) -> str:
        word = match[0]
        if word not in kin or rng.random() >= chance:
            return word
        return rng.choice([other for other in kin[word] if other != word])

    return _WORD.sub(swap, answer)


def wrong_answer(answer: str, rng: random.Random, *, easy: bool) -> str:
    """Makes a wrong answer from a correct one by changing one or more words; `easy` ones may keep hardly any correct word."""
    words = max(1, len(answer.split()))
    for _ in range(8):
        changed = swap_words(answer, rng, rng.choice((0.8, 0.3, 1 / words) if easy else (0.3, 1 / words)))
        if changed != answer:
            return changed
    return "nothing"


def matching_lesson(rng: random.Random, *, easy: bool = True) -> Lesson:
    """Draws a picture or passage with an answer about it, in which words may have been changed."""
    shown: list[Image.Image] = []
    if rng.random() < 0.7:
        seen = perception.sample_perception_lesson(rng)
        kind, shown, text, right = seen.skill.split("/")[1], seen.images, "", seen.reply
    else:
        kind, (text, right) = "text", _read(rng)
    answer = right if rng.random() < 0.4 else wrong_answer(right, rng, easy=easy)
    parts: list[str | Image.Image] = ["Verify: yes or no?\nTarget: ", *shown, f"{text}\nAnswer: {answer}"]
    return judging_lesson(f"match/{kind}", parts, answer, right)


def judging_lesson(skill: str, parts: Sequence[str | Image.Image], answer: str, right: str) -> Lesson:
    judged = judge(answer, right)
    return Lesson(skill, tuple(parts), "yes" if judged.right else "no", judged)


def _read(rng: random.Random) -> tuple[str, str]:
    """Draws a passage and what it says."""
    entity = rng.choice(list(encyclopedia().entities.values()))
    topic = rng.choice(("summary", *TOPICS))
    if topic == "summary":
        return summary(entity, rng).text, f"{entity.name}, {entity.kind}"
    said = {"home": entity.home, "finder": entity.finder, "season": f"{entity.season}, {entity.good}"}[topic]
    return topic_passage(entity, topic, rng).text, f"{entity.name}: {topic}: {said}"
