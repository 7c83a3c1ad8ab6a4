"""`make pocket-models`: trains the two pocket checkpoints from scratch and writes them with all that loads them.

    pocket/models/teacher   answers the pocket prompt set: reasons, assesses, verifies
    pocket/models/base      the student before TRACE: general skills only

Both share one tokenizer. Lessons are drawn from streams of their own, apart from every world's.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import torch
from transformers import PreTrainedTokenizerFast

import pocket.lessons.base
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
RECIPES: Final[dict[Role, Recipe]] = {
    "teacher": Recipe(steps=9000, seed=1),
    "base": Recipe(steps=7000, seed=2),
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


def train(role: Role, out: Path = MODELS, *, recipe: Recipe | None = None, device: str = "cpu") -> Path:
    """Trains one checkpoint and writes it to ``out/role``."""
    recipe = recipe or RECIPES[role]
    torch.manual_seed(recipe.seed)
    tokenizer = make_tokenizer()
    processor = build_processor(tokenizer)
    model = build_model(tokenizer)
    directory = out / role
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "training.jsonl"
    log.write_text(json.dumps({"role": role, "recipe": recipe.__dict__, "parameters": model.num_parameters()}) + "\n")

    def write(step: int, weights: dict[str, torch.Tensor]) -> None:
        state = {name: value.to(torch.bfloat16).cpu().clone() for name, value in weights.items()}
        model.config.dtype = torch.bfloat16
        model.save_pretrained(directory, state_dict=state)
        processor.save_pretrained(directory)

    weights = fit(model, processor, COURSES[role], recipe, log, device=device, keep=write)
    write(recipe.steps, weights)
    return directory
