"""The pocket base's closing course: thinking aloud, filling in forms and repeating words, as a full-size base model can.

Questions are plain, without a retrieval instruction, and a form's entries are random. TRACE still has to learn what a trace is,
when to write one, and what to embed after it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from pipeline.traces.families import FAMILIES, family_of
from pocket.curriculum.base_skills import imagine_seen, imagine_told, read, sample_practice_lesson, see_emblem, see_two_emblems
from pocket.curriculum.base_skills import sample_lesson as sample_base_lesson
from pocket.curriculum.closed_book import sample_closed_book_lesson
from pocket.curriculum.composed import edited_scene
from pocket.curriculum.difficulty import demanding
from pocket.curriculum.example import Lesson
from pocket.curriculum.query_mix import sample_known
from pocket.curriculum.solved_query import SolvedQuery
from pocket.world.encyclopedia import encyclopedia
from schemas.mbeir import DatasetTask

_ALOUD: Final = ("{} Think aloud.", "{}\nStep by step.", "Think first: {}", "Think it over.\n{}")
_UNSAID: Final = "What is to be seen?"
_EASY_LEFT_OUT: Final = 0.7
"""Share of the questions without reasoning that are left out."""
_THOUGHTS: Final = {
    "visual": "{0}; that is {1}. So {answer}.",
    "text": "{0}; in what is told {1}: {2}. So {answer}.",
    "knowledge": "{0}; the question is {1}: {2}. So {answer}.",
    "composed": "At first {0}; then {1}; the same is {2}. So {answer}.",
}
"""By task family, with the texts of its facets in order."""
_LABELS: Final = tuple(facet.label for family in FAMILIES.values() for facet in family.facets)
"""Labels of traces: may be repeated like other words, but are never an entry of a form."""
_WORDS: Final = (
    "Picture Question Change Colour Shape Size Place Thing Name Home Town Part Look Keep First Then Next Kind Need Read Known "
    "Said Seen Season Craft Idea Rest Start Middle End Left Right One Two Who Where What"
)
_ENTRIES: Final = tuple(_WORDS.split())
"""Words that a form may ask for, in any order."""
_FORMS: Final = ("{}\nFill in: {}.", "Form: {1}.\n{0}", "{}\nWrite down {}, and the answer.")
_AGAIN: Final = ("Repeat: {}", "Say again: {}", "{}\nOnce more, word for word.")


def think(rng: random.Random, known: SolvedQuery | None = None) -> Lesson:
    known = known or _asked(rng)
    family = family_of(DatasetTask.parse(known.dataset_task).task_id).name
    said = rng.choice(_ALOUD).format(known.text or _UNSAID)
    return _lesson(f"think/{family}", known, said, _THOUGHTS[family].format(*known.facets, answer=known.answer))


def fill_in(rng: random.Random, known: SolvedQuery | None = None) -> Lesson:
    """Draws a form: ``Known: …. Part: ….`` with random entries, and the answer on its own line."""
    known = known or _asked(rng)
    entries = rng.sample(_ENTRIES, len(known.facets))
    said = rng.choice(_FORMS).format(known.text or _UNSAID, ", ".join(entries))
    filled = " ".join(f"{entry}: {facet}." for entry, facet in zip(entries, known.facets, strict=True))
    return _lesson(
        f"form/{family_of(DatasetTask.parse(known.dataset_task).task_id).name}", known, said, f"{filled}\n{known.answer}"
    )


def repeat(rng: random.Random) -> Lesson:
    world = encyclopedia()
    kinds: list[Sequence[str]] = [list(world.entities), list(world.towns), list(world.persons), _ENTRIES, _LABELS, _LABELS]
    words = ", ".join(rng.choice(rng.choice(kinds)) for _ in range(rng.randint(1, 4)))
    return Lesson("repeat", (rng.choice(_AGAIN).format(words),), words)


def _asked(rng: random.Random) -> SolvedQuery:
    known = sample_known(rng)
    while not known.why.needs_reasoning and rng.random() < _EASY_LEFT_OUT:
        known = sample_known(rng)
    return known


def _lesson(skill: str, known: SolvedQuery, said: str, reply: str) -> Lesson:
    return Lesson(skill, (said,) if known.picture is None else (known.picture, f"\n{said}"), reply)


_KINDS: Final = {
    think: 0.25,
    fill_in: 0.35,
    repeat: 0.08,
    see_emblem: 0.03,
    see_two_emblems: 0.05,
    read: 0.05,
    sample_closed_book_lesson: 0.19,
}


def sample_think_aloud_lesson(rng: random.Random) -> Lesson:
    """Draws a lesson of the closing course: thoughts and forms, and in one third of cases earlier skills."""
    lesson: Lesson = rng.choices(list(_KINDS), list(_KINDS.values()))[0](rng)
    return lesson


_LONG: Final = {
    sample_think_aloud_lesson: 0.42,
    sample_closed_book_lesson: 0.18,
    sample_practice_lesson: 0.14,
    imagine_told: 0.12,
    sample_base_lesson: 0.14,
}
"""Half are thoughts and forms. Edits of described scenes are most frequent: they need no picture and are learnt last."""


def sample_long_lesson(rng: random.Random) -> Lesson:
    """Draws a lesson of the long course: every skill of the earlier courses at once."""
    with demanding():
        lesson: Lesson = rng.choices(list(_LONG), list(_LONG.values()))[0](rng)
    return lesson


def sample_edit_lesson(rng: random.Random) -> Lesson:
    """Draws a lesson about a change to a scene (described, seen, thought through or in a form), which is learnt last."""
    with demanding():
        chance = rng.random()
        if chance < 0.35:
            return imagine_told(rng)
        if chance < 0.70:
            return imagine_seen(rng)
        return (think if chance < 0.8 else fill_in)(rng, edited_scene(rng))
