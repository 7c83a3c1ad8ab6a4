"""The pocket base's closing course: to think aloud when asked to, as a base of real size does.

The questions are put plainly, without a retrieval instruction, and the thoughts have none of a trace's labels: what a trace is,
when to write one, and what to embed after it is left for TRACE to learn.
"""

from __future__ import annotations

import random
from typing import Final

from pipeline.families import family_of
from pocket.lessons.lesson import Lesson
from pocket.lessons.queries import sample_known
from pocket.lessons.worldly import sample_worldly_lesson

_ALOUD: Final = ("{} Think aloud.", "{}\nStep by step.", "Think first: {}", "Think it over.\n{}")
_UNSAID: Final = "What is to be seen?"
_EASY_LEFT_OUT: Final = 0.7
"""Share of the questions left out that need no thought."""
_THOUGHTS: Final = {
    "visual": "{0}; that is {1}. So {answer}.",
    "text": "{0}; in a {1}: {2}. So {answer}.",
    "knowledge": "{0}; the question is {1}: {2}. So {answer}.",
    "composed": "At first {0}; then {1}; the same is {2}. So {answer}.",
}
"""By task family, with the texts of its facets in order."""


def think(rng: random.Random) -> Lesson:
    known = sample_known(rng)
    while not known.why.needs_reasoning and rng.random() < _EASY_LEFT_OUT:
        known = sample_known(rng)
    family = family_of(int(known.dataset_task[-1])).name
    said = rng.choice(_ALOUD).format(known.text or _UNSAID)
    reply = _THOUGHTS[family].format(*known.facets, answer=known.answer)
    return Lesson(f"think/{family}", (said,) if known.picture is None else (known.picture, f"\n{said}"), reply)


def sample_thinking_lesson(rng: random.Random) -> Lesson:
    """One lesson of the closing course: thoughts, and one in four of the lessons before."""
    return sample_worldly_lesson(rng) if rng.random() < 1 / 4 else think(rng)
