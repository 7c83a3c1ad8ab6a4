"""`make pocket-models`: trains the two pocket checkpoints from scratch and writes them with tokenizer, processor and card.

    pocket/checkpoints/teacher   answers the pocket prompt set: reasons, assesses, verifies
    pocket/checkpoints/base      the student before TRACE: general skills only

Both share one tokenizer. Lessons are drawn with seeds that no world uses.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from pocket.curriculum import base_skills, closed_book, perception, teacher_tasks, think_aloud
from pocket.curriculum.example import Lesson
from pocket.training.tiny_qwen import build_model, build_processor, build_tokenizer, deepened
from pocket.training.train_loop import Recipe, fit
from pocket.training.verification_loss import collate_judged, judging_losses
from pocket.world.encyclopedia import encyclopedia
from pocket.world.passages import summary, topic_passage

Role = Literal["teacher", "base"]
MODELS: Final = Path(__file__).parents[1] / "checkpoints"
COURSES: Final[dict[Role, Callable[[random.Random], Lesson]]] = {
    "teacher": teacher_tasks.sample_lesson,
    "base": base_skills.sample_lesson,
}
SEEING: Final = Recipe(steps=3000, batch=64, seed=3)
"""Recipe of the stem, with which both models begin; the courses continue from it."""


@dataclass(frozen=True)
class Course:
    """One phase of training, which starts from the weights of the one before."""

    sample: Callable[[random.Random], Lesson]
    recipe: Recipe
    judging: bool = False
    """Adds two layers, and trains judging with the losses of `pocket/training/verification_loss.py`."""
    deeper: bool = False
    """Adds two layers, as judging does, but without its losses."""
    share: float = 1.0
    """Share of the new weights in the average with the initial ones (WiSE-FT). The average keeps the strengths of both."""


PHASES: Final[dict[Role, tuple[Course, ...]]] = {
    "teacher": (
        Course(teacher_tasks.sample_reasoning_lesson, Recipe(steps=6000, batch=32, seed=1)),
        Course(teacher_tasks.sample_judging_lesson, Recipe(steps=2500, batch=32, lr=7e-4, seed=13), judging=True),
        Course(teacher_tasks.sample_closing_lesson, Recipe(steps=600, batch=32, lr=5e-4, seed=14), True, share=2 / 3),
    ),
    "base": (
        Course(base_skills.sample_lesson, Recipe(steps=2500, seed=2)),
        Course(base_skills.sample_practice_lesson, Recipe(steps=2000, seed=15)),
        Course(closed_book.sample_closed_book_lesson, Recipe(steps=750, lr=7e-4, warmup=50, ema=0.99, seed=16)),
        Course(closed_book.sample_closed_book_lesson, Recipe(steps=1800, lr=7e-4, warmup=100, ema=0.995, seed=17)),
        Course(think_aloud.sample_think_aloud_lesson, Recipe(steps=1200, lr=7e-4, warmup=50, ema=0.99, seed=20)),
    ),
}
"""The courses that follow the stem."""
LONG: Final[dict[Role, Course]] = {
    "teacher": Course(
        teacher_tasks.sample_long_lesson,
        Recipe(steps=1_000_000, batch=512, warmup=300, ema=0.999, seed=30, minutes=18, workers=7),
        judging=True,
    ),
    "base": Course(
        think_aloud.sample_long_lesson,
        Recipe(steps=1_000_000, batch=512, warmup=300, ema=0.999, seed=31, minutes=18, workers=7, optimiser="muon"),
        deeper=True,
    ),
}
"""A course for a GPU, limited by minutes instead of steps, from the shipped weights: every skill of a model at once."""
EDITS: Final[dict[Role, Callable[[random.Random], Lesson]]] = {
    "teacher": teacher_tasks.sample_edit_lesson,
    "base": think_aloud.sample_edit_lesson,
}
"""Lessons of the skill that is learnt last; a long course may draw an extra share of them."""


@dataclass(frozen=True)
class Stressed:
    """Draws a share of the lessons from `stressed` and the others from `sample`."""

    sample: Callable[[random.Random], Lesson]
    stressed: Callable[[random.Random], Lesson]
    share: float

    def __call__(self, rng: random.Random) -> Lesson:
        return self.stressed(rng) if rng.random() < self.share else self.sample(rng)


JUDGING_LAYERS, JUDGING_INTERMEDIATE = 7, 632
VOCABULARY: Final = 1024
_CORPUS_LESSONS: Final = 6000


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Trains the tokenizer of both models on the texts of both courses and of the passages."""
    rng = random.Random("tokenizer")  # noqa: S311
    texts: list[str] = []
    for sample in COURSES.values():
        for _ in range(_CORPUS_LESSONS):
            lesson = sample(rng)
            texts += [part for part in lesson.parts if isinstance(part, str)] + [lesson.reply]
    for entity in encyclopedia().entities.values():
        texts += [
            summary(entity, rng).text,
            *(topic_passage(entity, topic, rng).text for topic in ("home", "finder", "season")),
        ]
    return build_tokenizer(texts, VOCABULARY)


def train_stem(out: Path = MODELS, *, recipe: Recipe = SEEING, device: str = "cpu") -> Path:
    """Trains the stem, the perception course of both models, and writes it to ``out/stem`` (not shipped)."""
    torch.manual_seed(recipe.seed)
    tokenizer = make_tokenizer()
    course = Course(perception.sample_perception_lesson, recipe)
    return _train(build_model(tokenizer), tokenizer, course, out / "stem", device)


def train(role: Role, out: Path = MODELS, *, steps: int | None = None, device: str = "cpu") -> Path:
    """Trains one checkpoint from ``out/stem`` and writes it to ``out/role``. `steps` shortens each course (for trials)."""
    stem = directory = out / "stem"
    log = b""
    for course in PHASES[role]:
        model, tokenizer = _loaded(directory, course)
        shortened = course if steps is None else replace(course, recipe=replace(course.recipe, steps=steps))
        directory = _train(model, tokenizer, shortened, out / role, device)
        log += (directory / "training.jsonl").read_bytes()
    (directory / "training.jsonl").write_bytes(log)
    shutil.copy(stem / "training.jsonl", directory / "stem.training.jsonl")
    return directory


def train_long(
    role: Role, out: Path, *, source: Path | None = None, course: Course | None = None, device: str = "cuda"
) -> Path:
    """Continues from the checkpoint in `source` (the shipped one) with the long course and writes ``out/role``.

    Its log is appended to that of the earlier courses.
    """
    course, source = course or LONG[role], source or MODELS / role
    model, tokenizer = _loaded(source, course)
    before = (source / "training.jsonl").read_bytes()
    stem = (source / "stem.training.jsonl").read_bytes()
    directory = _train(model, tokenizer, course, out / role, device)
    (directory / "training.jsonl").write_bytes(before + (directory / "training.jsonl").read_bytes())
    (directory / "stem.training.jsonl").write_bytes(stem)
    return directory


def _loaded(directory: Path, course: Course) -> tuple[Qwen2_5_VLForConditionalGeneration, PreTrainedTokenizerFast]:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    torch.manual_seed(course.recipe.seed)
    if (course.judging or course.deeper) and len(model.model.language_model.layers) < JUDGING_LAYERS:
        model = deepened(model, layers=JUDGING_LAYERS, intermediate=JUDGING_INTERMEDIATE)
    return model, tokenizer


def _train(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    course: Course,
    directory: Path,
    device: str,
) -> Path:
    processor, recipe = build_processor(tokenizer), course.recipe
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "training.jsonl"
    head = {"model": directory.name, "recipe": recipe.__dict__, "parameters": model.num_parameters()}
    log.write_text(json.dumps(head) + "\n", encoding="utf-8")

    def write(step: int, weights: dict[str, torch.Tensor]) -> None:
        state = {name: value.to(torch.bfloat16).cpu().clone() for name, value in weights.items()}
        model.config.dtype = torch.bfloat16
        model.save_pretrained(directory, state_dict=state)
        processor.save_pretrained(directory)

    ways: dict[str, Any] = {}
    if course.judging:
        ways = {"collated": collate_judged, "losses": partial(judging_losses, processor=processor)}
    began_with = {name: value.clone() for name, value in model.state_dict().items()}
    found = fit(model, processor, course.sample, recipe, log, device=device, keep=write, **ways)
    if course.share < 1:
        found = {name: torch.lerp(began_with[name], value, course.share) for name, value in found.items()}
    write(recipe.steps, found)
    return directory
