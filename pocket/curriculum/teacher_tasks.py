"""The pocket teacher's lessons: the tasks of the pocket prompt set, with the correct replies.

Real teachers are good but not perfect. So is this one, because it is small. No lesson is deliberately wrong, except for the
answers that the teacher learns to reject in verification.
"""

from __future__ import annotations

import random
from functools import cache

from PIL import Image

from pipeline.traces.families import family_of
from pocket.curriculum.composed import edited_scene
from pocket.curriculum.difficulty import demanding
from pocket.curriculum.example import Lesson
from pocket.curriculum.perception import sample_perception_lesson as sample_seeing_lesson
from pocket.curriculum.query_mix import JUDGED, sample_known
from pocket.curriculum.solved_query import SolvedQuery
from pocket.curriculum.verification import judging_lesson, matching_lesson, wrong_answer
from pocket.world.draw import draw_scene
from pocket.world.scene import sample_scene
from prompts import ImageSlot, Prompt, PromptSet
from schemas.mbeir import DatasetTask
from schemas.trace import FacetText, Trace


@cache
def pocket_prompts() -> PromptSet:
    return PromptSet.load("pocket")


def right_trace(known: SolvedQuery) -> Trace:
    """Returns the trace that a perfect teacher would write."""
    family = family_of(DatasetTask.parse(known.dataset_task).task_id)
    facets = tuple(
        FacetText(name=facet.name, label=facet.label, text=text)
        for facet, text in zip(family.facets, known.facets, strict=True)
    )
    return Trace(family=family.name, facets=facets, answer=known.answer)


def _parts(prompt: Prompt, pictures: dict[str, Image.Image | None]) -> tuple[str | Image.Image, ...]:
    parts: list[str | Image.Image] = []
    for part in prompt:
        picture = pictures[part.role] if isinstance(part, ImageSlot) else None
        parts.append(picture if picture is not None else str(part))
    return tuple(parts)


def _lesson(skill: str, prompt: Prompt, pictures: dict[str, Image.Image | None], reply: str) -> Lesson:
    return Lesson(skill, _parts(prompt, pictures), reply)


def assess_lesson(known: SolvedQuery, rng: random.Random) -> Lesson:
    prompt = pocket_prompts().render("assess", **_query(known, rng))
    label = "complex" if known.why.needs_reasoning else "simple"
    return _lesson(f"assess/{_family(known)}", prompt, {"query": known.picture}, label)


def reason_lesson(known: SolvedQuery, rng: random.Random, *, complaint: str = "") -> Lesson:
    family = _family(known)
    prompt = pocket_prompts().render(f"reason_{family}", complaint=complaint, **_query(known, rng))
    return _lesson(f"reason/{family}", prompt, {"query": known.picture}, right_trace(known).render())


def verify_lesson(known: SolvedQuery, rng: random.Random, *, near: float = 1.0) -> Lesson:
    """Draws a verification lesson; half of the answers are wrong.

    near: share of wrong answers that a careless teacher might give; in the others, words are swapped at random.
    """
    wrong = [wrong for wrong in known.wrong if wrong != known.answer]
    answer = known.answer
    if rng.random() < 0.5:
        answer = rng.choice(wrong) if wrong and rng.random() < near else wrong_answer(answer, rng, easy=near < 1)
    prompt = pocket_prompts().render(
        "verify_image" if known.target_picture is not None else "verify_text",
        answer=answer,
        target_text=known.target_text,
        has_target_image=known.target_picture is not None,
        **_query(known, rng),
    )
    parts = _parts(prompt, {"query": known.picture, "target": known.target_picture})
    return judging_lesson(f"verify/{_family(known)}", parts, answer, known.answer)


def describe_lesson(rng: random.Random) -> Lesson:
    """Draws a lesson in describing an image."""
    scene = sample_scene(rng)
    return Lesson("describe", ("Describe.\n", draw_scene(scene, rng)), scene.canonical)


_COMPLAINTS = ("too short", "too long", "wrong", "not supported", "repeated words")


def _complaint(rng: random.Random, share: float) -> str:
    """Draws a repair's complaint about the previous trace; empty for a first trace."""
    return rng.choice(_COMPLAINTS) if rng.random() < share else ""


def sample_lesson(rng: random.Random) -> Lesson:
    """Draws a lesson as the teacher is measured: every skill, with wrong answers close to the correct ones."""
    chance = rng.random()
    if chance < 0.08:
        return describe_lesson(rng)
    known = sample_known(rng)
    if chance < 0.62:
        return reason_lesson(known, rng, complaint=_complaint(rng, 0.08))
    return assess_lesson(known, rng) if chance < 0.74 else verify_lesson(known, rng)


def sample_reasoning_lesson(rng: random.Random) -> Lesson:
    """Draws a lesson of the first course after perception: reasoning and assessment."""
    chance = rng.random()
    if chance < 0.10:
        return sample_seeing_lesson(rng)
    known = sample_known(rng)
    if chance < 0.20:
        return assess_lesson(known, rng)
    return reason_lesson(known, rng, complaint=_complaint(rng, 0.08))


def sample_judging_lesson(rng: random.Random) -> Lesson:
    """Draws a lesson of the second course: judging, and earlier skills so that they do not fade."""
    chance = rng.random()
    if chance < 0.08:
        return matching_lesson(rng)
    if chance < 0.10:
        return describe_lesson(rng)
    if chance < 0.60:
        return verify_lesson(sample_known(rng, JUDGED), rng, near=rng.choice((0.0, 1.0)))
    known = sample_known(rng)
    if chance < 0.64:
        return assess_lesson(known, rng)
    return reason_lesson(known, rng, complaint=_complaint(rng, 0.06))


def sample_closing_lesson(rng: random.Random) -> Lesson:
    """Draws a lesson of the last course: mostly reasoning, which judging has weakened."""
    chance = rng.random()
    if chance < 0.06:
        return describe_lesson(rng)
    if chance < 0.22:
        return verify_lesson(sample_known(rng, JUDGED), rng, near=1.0)
    known = sample_known(rng)
    if chance < 0.25:
        return assess_lesson(known, rng)
    return reason_lesson(known, rng, complaint=_complaint(rng, 0.06))


def sample_long_lesson(rng: random.Random) -> Lesson:
    """Draws a lesson of the long course: the judging and reasoning of the two earlier courses at once."""
    with demanding():
        return sample_closing_lesson(rng) if rng.random() < 0.6 else sample_judging_lesson(rng)


def sample_edit_lesson(rng: random.Random) -> Lesson:
    """Draws a reasoning lesson about a change to a scene, the skill that is learnt last."""
    with demanding():
        return reason_lesson(edited_scene(rng), rng, complaint=_complaint(rng, 0.06))


def _family(known: SolvedQuery) -> str:
    return family_of(DatasetTask.parse(known.dataset_task).task_id).name


def _query(known: SolvedQuery, rng: random.Random) -> dict[str, str | bool]:
    return {
        "instruction": rng.choice(known.instruction_choices),
        "query_text": known.text or "",
        "has_image": known.picture is not None,
    }
