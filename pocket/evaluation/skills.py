"""Accuracy of a pocket checkpoint per skill, on held-out lessons (with seeds that training does not use).

    python -m pocket.evaluation.skills teacher [--lessons 200] [--directory DIR]

Replies are decoded greedily with plain transformers. Reasoning is measured by the answer and by the whole trace; judgements by
the AUC of the label's probability against the truth, and by accuracy at one half.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from transformers import AutoModelForImageTextToText, AutoProcessor

from data_cards import render_pocket_model_card
from pipeline.traces.families import FAMILIES
from pipeline.traces.judgements import ASSESS, VERIFY, Labels
from pipeline.traces.parser import parse_trace
from pocket.curriculum.closed_book import sample_closed_book_lesson
from pocket.curriculum.example import Lesson
from pocket.curriculum.think_aloud import sample_think_aloud_lesson
from pocket.training.train_loop import collate
from pocket.training.train_models import COURSES, MODELS, Role
from schemas.trace import Trace

_MAX_NEW_TOKENS = 200


def held_out(sample: Callable[[random.Random], Lesson], skills: int, seed: int) -> dict[str, list[Lesson]]:
    """Draws about `skills` lessons of each skill, with seeds that neither training nor any world uses."""
    rng = random.Random(f"held-out:{seed}")  # noqa: S311
    found: dict[str, list[Lesson]] = defaultdict(list)
    for _ in range(60 * skills):
        lesson = sample(rng)
        if len(found[lesson.skill]) < skills:
            found[lesson.skill].append(lesson)
    return dict(sorted(found.items()))


def _skills(role: Role, lessons: int, seed: int) -> dict[str, list[Lesson]]:
    """Draws held-out lessons of all courses of a role."""
    found = held_out(COURSES[role], lessons, seed)
    if role == "base":
        thoughts = held_out(sample_think_aloud_lesson, lessons, seed)
        found = thoughts | held_out(sample_closed_book_lesson, lessons, seed) | found
    return dict(sorted(found.items()))


def auc(scores: Iterable[float], labels: Iterable[bool]) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative; ties count half."""
    values, positive = np.asarray(list(scores)), np.asarray(list(labels), bool)
    if positive.all() or not positive.any():
        return float("nan")
    above = (values[positive][:, None] > values[~positive][None, :]).mean()
    equal = (values[positive][:, None] == values[~positive][None, :]).mean()
    return float(above + equal / 2)


class Checkpoint:
    """A pocket checkpoint in float32, loaded with plain transformers."""

    def __init__(self, directory: Path) -> None:
        self.processor = AutoProcessor.from_pretrained(directory)
        self.model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()

    @torch.inference_mode()
    def replies(self, lessons: list[Lesson], *, batch: int = 50) -> list[str]:
        """Generates greedy replies. The lessons of one call should have the same number of images."""
        found: list[str] = []
        for start in range(0, len(lessons), batch):
            inputs = collate(lessons[start : start + batch], self.processor, with_reply=False)
            ids = self.model.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
            new = ids[:, inputs["input_ids"].shape[1] :]
            found += self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        return found

    @torch.inference_mode()
    def probabilities(self, lessons: list[Lesson], labels: Labels, *, batch: int = 50) -> list[float]:
        """Computes P(positive label) from the first reply token."""
        first = [
            self.processor.tokenizer.encode(label, add_special_tokens=False)[0] for label in (labels.positive, labels.negative)
        ]
        found: list[float] = []
        for start in range(0, len(lessons), batch):
            inputs = collate(lessons[start : start + batch], self.processor, with_reply=False)
            logits = self.model(**inputs, logits_to_keep=1).logits[:, -1, first]
            found += logits.softmax(-1)[:, 0].tolist()
        return found


def measure(role: Role, directory: Path, lessons: int, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Measures a checkpoint. Returns skill -> figures."""
    checkpoint = Checkpoint(directory)
    figures: dict[str, dict[str, Any]] = {}
    for skill, drawn in _skills(role, lessons, seed).items():
        drawn.sort(key=lambda lesson: len(lesson.images))
        kind, _, family = skill.partition("/")
        if kind in ("assess", "verify") and role == "teacher":
            labels = ASSESS if kind == "assess" else VERIFY
            truth = [lesson.reply == labels.positive for lesson in drawn]
            scores = checkpoint.probabilities(drawn, labels)
            right = np.mean([(score > 0.5) == is_positive for score, is_positive in zip(scores, truth, strict=True)])
            figures[skill] = {"n": len(drawn), "auc": round(auc(scores, truth), 4), "accuracy": round(float(right), 4)}
            continue
        replies = checkpoint.replies(drawn)
        exact = [reply == lesson.reply for reply, lesson in zip(replies, drawn, strict=True)]
        figures[skill] = {"n": len(drawn), "exact": round(float(np.mean(exact)), 4)}
        if kind == "reason":
            answers = [
                _answer(reply, family) == _answer(lesson.reply, family) for reply, lesson in zip(replies, drawn, strict=True)
            ]
            figures[skill]["answer"] = round(float(np.mean(answers)), 4)
        if kind in ("think", "form"):
            end = " So " if kind == "think" else "\n"
            same = [reply.split(end)[-1] == lesson.reply.split(end)[-1] for reply, lesson in zip(replies, drawn, strict=True)]
            figures[skill]["answer"] = round(float(np.mean(same)), 4)
    return figures


def _answer(reply: str, family: str) -> str | None:
    trace = parse_trace(reply, FAMILIES[family])
    return trace.answer if isinstance(trace, Trace) else None


def main(
    role: Annotated[str, typer.Argument(help="teacher or base")],
    lessons: Annotated[int, typer.Option(help="Held-out lessons per skill.")] = 200,
    directory: Annotated[Path | None, typer.Option(help="The checkpoint [default: the shipped one].")] = None,
    card: Annotated[bool, typer.Option("--card", help="Write the figures into the checkpoint's model card too.")] = False,
) -> None:
    """Prints the figures as JSON, one skill per line."""
    checked: Role = "teacher" if role == "teacher" else "base"
    place = directory or MODELS / role
    found = measure(checked, place, lessons)
    for skill, figures in found.items():
        typer.echo(json.dumps({"skill": skill, **figures}))
    if card:
        stem = place / "stem.training.jsonl"
        text = render_pocket_model_card(checked, place / "training.jsonl", stem, found, lessons)
        (place / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
