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

RECIPES: Final[dict[Role, Recipe]] = {
    "teacher": Recipe(steps=6000, seed=1),
    "base": Recipe(steps=5000, seed=2),
}
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


def train(role: Role, out: Path = MODELS, *, recipe: Recipe | None = None, device: str = "cpu") -> Path:
    """Trains one checkpoint from ``out/stem`` and writes it to ``out/role``."""
    stem = out / "stem"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(stem)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(stem, dtype=torch.float32)
    recipe = recipe or RECIPES[role]
    torch.manual_seed(recipe.seed)
    directory = _train(model, tokenizer, COURSES[role], recipe, out / role, device)
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
