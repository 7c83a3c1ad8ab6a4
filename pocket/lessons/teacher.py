"""The pocket teacher's lessons: the tasks of the pocket prompt set, with the right replies.

Real teachers are good but not perfect. So is this one, by its size: nothing here is made wrong on purpose but the answers
that it learns to refuse when it verifies.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

from PIL import Image

from pipeline.families import family_of
from pocket.lessons.composed import edited_scene
from pocket.lessons.known import Known
from pocket.lessons.lesson import Doubted, Lesson
from pocket.lessons.queries import sample_known
from pocket.world.draw import draw_scene
from pocket.world.scene import sample_scene
from prompts import ImageSlot, Prompt, PromptSet
from schemas.trace import FacetText, Trace


@cache
def pocket_prompts() -> PromptSet:
    return PromptSet.load("pocket")


def right_trace(known: Known) -> Trace:
    """The trace that a perfect teacher writes."""
    family = family_of(int(known.dataset_task[-1]))
    facets = tuple(
        FacetText(name=facet.name, label=facet.label, text=text)
        for facet, text in zip(family.facets, known.facets, strict=True)
    )
    return Trace(family=family.name, facets=facets, answer=known.answer)


def _lesson(skill: str, prompt: Prompt, pictures: dict[str, Image.Image | None], reply: str) -> Lesson:
    parts: list[str | Image.Image] = []
    for part in prompt:
        picture = pictures[part.role] if isinstance(part, ImageSlot) else None
        parts.append(picture if picture is not None else str(part))
    return Lesson(skill, tuple(parts), reply)


def assess_lesson(known: Known, rng: random.Random) -> Lesson:
    prompt = pocket_prompts().render("assess", **_query(known, rng))
    label = "complex" if known.why.needs_reasoning else "simple"
    return _lesson(f"assess/{_family(known)}", prompt, {"query": known.picture}, label)


def reason_lesson(known: Known, rng: random.Random, *, complaint: str = "") -> Lesson:
    family = _family(known)
    prompt = pocket_prompts().render(f"reason_{family}", complaint=complaint, **_query(known, rng))
    return _lesson(f"reason/{family}", prompt, {"query": known.picture}, right_trace(known).render())


def verify_lesson(known: Known, rng: random.Random, *, strangers: float = 0.0) -> Lesson:
    """`strangers`: share of the wrong answers that are right for another query of the kind, and so easy to tell."""
    right = rng.random() < 0.5
    wrong = [wrong for wrong in known.wrong if wrong != known.answer] or ["nothing"]
    if rng.random() < strangers:
        while (other := sample_known(rng)).dataset_task != known.dataset_task or other.answer == known.answer:
            pass
        wrong = [other.answer]
    answer = known.answer if right else rng.choice(wrong)
    prompt = pocket_prompts().render(
        "verify_image" if known.target_picture is not None else "verify_text",
        answer=answer,
        target_text=known.target_text,
        has_target_image=known.target_picture is not None,
        **_query(known, rng),
    )
    pictures = {"query": known.picture, "target": known.target_picture}
    shared = next((i for i, (a, b) in enumerate(zip(answer, known.answer, strict=False)) if a != b), len(answer))
    doubted = Doubted(answer, len(answer) if right else min(shared, len(answer) - 1))
    return replace(_lesson(f"verify/{_family(known)}", prompt, pictures, "yes" if right else "no"), doubted=doubted)


def describe_lesson(rng: random.Random) -> Lesson:
    """Seeing, before anything else."""
    scene = sample_scene(rng)
    return Lesson("describe", ("Describe.\n", draw_scene(scene, rng)), scene.canonical)


_COMPLAINTS = ("too short", "too long", "wrong", "not supported", "repeated words")


def sample_lesson(rng: random.Random) -> Lesson:
    """One lesson of the teacher's course."""
    chance = rng.random()
    if chance < 0.08:
        return describe_lesson(rng)
    known = sample_known(rng)
    if chance < 0.62:
        return reason_lesson(known, rng, complaint=rng.choice(_COMPLAINTS) if rng.random() < 0.08 else "")
    return assess_lesson(known, rng) if chance < 0.74 else verify_lesson(known, rng)


def sample_judging_lesson(rng: random.Random) -> Lesson:
    """One lesson of the second course: verifying, with half of the wrong answers far off.

    Near misses alone teach nothing: all that tells them apart is one word against one thing in a picture, and a model that
    compares nothing yet gets no hint of it.
    """
    chance = rng.random()
    if chance < 0.15:
        return reason_lesson(edited_scene(rng) if chance < 0.08 else sample_known(rng), rng)
    known = sample_known(rng)
    return assess_lesson(known, rng) if chance < 0.18 else verify_lesson(known, rng, strangers=0.3)


def _family(known: Known) -> str:
    return family_of(int(known.dataset_task[-1])).name


def _query(known: Known, rng: random.Random) -> dict[str, str | bool]:
    return {
        "instruction": rng.choice(known.instruction_choices),
        "query_text": known.text or "",
        "has_image": known.picture is not None,
    }
