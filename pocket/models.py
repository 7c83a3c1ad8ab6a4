"""`make pocket-models`: trains the two pocket checkpoints from scratch and writes them with all that loads them.

    pocket/models/teacher   answers the pocket prompt set: reasons, assesses, verifies
    pocket/models/base      the student before TRACE: general skills only

Both share one tokenizer. Lessons are drawn from streams of their own, apart from every world's.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

import pocket.lessons.base
import pocket.lessons.seeing
import pocket.lessons.teacher
from pocket.architecture import build_model, build_processor, build_tokenizer
from pocket.fit import Recipe, fit
from pocket.lessons.lesson import Lesson
from pocket.world.encyclopedia import encyclopedia
from pocket.world.passages import summary, topic_passage

Role = Literal["teacher", "base"]
MODELS: Final = Path(__file__).parent / "models"
COURSES: Final[dict[Role, Callable[[random.Random], Lesson]]] = {
    "teacher": pocket.lessons.teacher.sample_lesson,
    "base": pocket.lessons.base.sample_lesson,
}
SEEING: Final = Recipe(steps=3000, batch=64, seed=3)
"""Both models begin with this; the courses go on from it."""

PHASES: Final[dict[Role, tuple[tuple[Callable[[random.Random], Lesson], Recipe], ...]]] = {
    "teacher": (
        (pocket.lessons.teacher.sample_matching_lesson, Recipe(steps=3000, batch=48, seed=11)),
        (pocket.lessons.teacher.sample_mixed_lesson, Recipe(steps=16000, batch=48, seed=12)),
    ),
    "base": ((pocket.lessons.base.sample_lesson, Recipe(steps=2500, seed=2)),),
}
"""The courses that follow, each from the weights that the one before has written."""
VOCABULARY: Final = 1024
_CORPUS_LESSONS: Final = 6000


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One tokenizer for both, trained on the texts of both courses and of the passages."""
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
    """Trains what both models begin with, to see, and writes it to ``out/stem`` (not shipped)."""
    torch.manual_seed(recipe.seed)
    tokenizer = make_tokenizer()
    return _train(build_model(tokenizer), tokenizer, pocket.lessons.seeing.sample_lesson, recipe, out / "stem", device)


def train(role: Role, out: Path = MODELS, *, steps: int | None = None, device: str = "cpu") -> Path:
    """Trains one checkpoint from ``out/stem`` and writes it to ``out/role``. `steps` shortens each course (for trials)."""
    stem = directory = out / "stem"
    log = b""
    for course, recipe in PHASES[role]:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
        torch.manual_seed(recipe.seed)
        shortened = recipe if steps is None else replace(recipe, steps=steps)
        directory = _train(model, tokenizer, course, shortened, out / role, device)
        log += (directory / "training.jsonl").read_bytes()
    (directory / "training.jsonl").write_bytes(log)
    shutil.copy(stem / "training.jsonl", directory / "stem.training.jsonl")
    return directory


def _train(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    course: Callable[[random.Random], Lesson],
    recipe: Recipe,
    directory: Path,
    device: str,
) -> Path:
    processor = build_processor(tokenizer)
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "training.jsonl"
    head = {"model": directory.name, "recipe": recipe.__dict__, "parameters": model.num_parameters()}
    log.write_text(json.dumps(head) + "\n")

    def write(step: int, weights: dict[str, torch.Tensor]) -> None:
        state = {name: value.to(torch.bfloat16).cpu().clone() for name, value in weights.items()}
        model.config.dtype = torch.bfloat16
        model.save_pretrained(directory, state_dict=state)
        processor.save_pretrained(directory)

    write(recipe.steps, fit(model, processor, course, recipe, log, device=device, keep=write))
    return directory
