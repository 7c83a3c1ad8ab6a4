"""Fits a tiny Qwen2.5-VL to a stream of lessons: next-token loss on the replies, nothing else.

1. A worker process draws lessons, renders images and tokenises, in batches of similar length.
2. AdamW with warm-up and cosine decay; matrix products in bfloat16, weights in float32.
3. What is kept is an exponential moving average of the weights, cast to bfloat16 at the end.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from pocket.lessons.lesson import Lesson

IGNORE = -100
WORD, MARK, JUDGEMENT = 0, 1, 2
"""What a label is: a word of a reply, a judgement of a phrase within the prompt, the judgement that the reply is."""
LENGTH_STEP = 32
LENGTH_POOL = 16
"""Batches drawn at once and sorted by length, so that a batch wastes little on padding."""


@dataclass(frozen=True)
class Recipe:
    steps: int
    batch: int = 32
    lr: float = 1.0e-3
    warmup: int = 200
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.997
    seed: int = 1
    mark: float = 1.0
    """Weight of the marks within judged answers, beside the replies' 1."""
    judgement: float = 0.5
    """Weight of the judgements themselves. Both are averaged on their own: among a batch's words they would be lost."""


def collate(lessons: list[Lesson], processor: Qwen2_5_VLProcessor, *, with_reply: bool = True) -> dict[str, Tensor]:
    """Right-padded model inputs; `labels` hold the reply and the end of turn (padding and prompt are ignored), and marks.

    Without replies the rows end in the generation prompt and are left-padded, as `generate` wants them.
    """
    tokenizer = processor.tokenizer
    images = [image for lesson in lessons for image in lesson.images]
    visual = processor.image_processor(images=images, return_tensors="pt") if images else {}
    merge = processor.image_processor.merge_size**2
    counts = iter([int(grid.prod()) // merge for grid in visual["image_grid_thw"]] if images else [])
    rows, starts, marks = [], [], []
    for lesson in lessons:
        prompt = tokenizer.apply_chat_template(lesson.messages, tokenize=False, add_generation_prompt=True)
        pieces = prompt.split(processor.image_token)
        prompt = pieces[0] + "".join(processor.image_token * next(counts) + piece for piece in pieces[1:])
        encoded = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=lesson.judged is not None)
        prompt_ids = encoded.input_ids
        reply_ids = [*tokenizer(lesson.reply, add_special_tokens=False).input_ids, tokenizer.eos_token_id] if with_reply else []
        rows.append(prompt_ids + reply_ids)
        starts.append(len(prompt_ids))
        marks.append(_marks(lesson, prompt, encoded.offset_mapping, tokenizer) if lesson.judged is not None else {})
    length = max(map(len, rows))
    if with_reply:  # few lengths: on CPU every new shape costs a compilation of its matrix products
        length += -length % LENGTH_STEP
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE)
    kinds = torch.zeros_like(ids)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        place = slice(0, len(row)) if with_reply else slice(length - len(row), length)
        ids[i, place] = torch.tensor(row)
        mask[i, place] = 1
        if with_reply:
            labels[i, start : len(row)] = ids[i, start : len(row)]
            kinds[i, start] = JUDGEMENT if marks[i] else WORD
            for at, label in marks[i].items():
                labels[i, at + 1] = label  # the label of a place is read off the state before it
                kinds[i, at + 1] = MARK
    batch = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == processor.image_token_id).int(), **visual}
    return batch | {"labels": labels, "kinds": kinds} if with_reply else batch


def _marks(lesson: Lesson, prompt: str, offsets: list[tuple[int, int]], tokenizer: PreTrainedTokenizerFast) -> dict[int, int]:
    """Position -> yes or no, at the last token of every phrase of a judged answer in the prompt."""
    if lesson.judged is None:
        return {}
    yes, no = (tokenizer.encode(word, add_special_tokens=False)[0] for word in ("yes", "no"))
    first = prompt.rindex(lesson.judged.answer)
    ends = {first + end: right for end, right in lesson.judged.ends}
    marks = {}
    for end, right in ends.items():
        at = next(at for at, (start, stop) in enumerate(offsets) if start < end <= stop)
        marks[at] = yes if right else no
    return marks


class LessonStream(IterableDataset[dict[str, Tensor]]):
    """Endless batches drawn by ``sample(rng)``; the seed alone decides them."""

    def __init__(self, sample: Callable[[random.Random], Lesson], processor: Qwen2_5_VLProcessor, recipe: Recipe) -> None:
        self.sample, self.processor, self.recipe = sample, processor, recipe

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        torch.set_num_threads(1)
        rng = random.Random(f"lessons:{self.recipe.seed}")  # noqa: S311
        while True:
            drawn = [self.sample(rng) for _ in range(self.recipe.batch * LENGTH_POOL)]
            drawn.sort(key=_length)
            batches = [drawn[i : i + self.recipe.batch] for i in range(0, len(drawn), self.recipe.batch)]
            rng.shuffle(batches)
            for batch in batches:
                yield collate(batch, self.processor)


def _length(lesson: Lesson) -> tuple[int, int]:
    return len(lesson.images), len(lesson.reply) + sum(len(part) for part in lesson.parts if isinstance(part, str))


def learning_rate(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def lesson_losses(model: Qwen2_5_VLForConditionalGeneration, batch: dict[str, Tensor]) -> dict[int, Tensor]:
    """Mean next-token loss for each kind of label that the batch has; logits are computed for labelled places alone."""
    labels, kinds = batch["labels"][:, 1:], batch["kinds"][:, 1:]
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "kinds")}
    hidden = model.model(**inputs).last_hidden_state[:, :-1]
    scored = labels != IGNORE
    losses = nn.functional.cross_entropy(model.lm_head(hidden[scored]).float(), labels[scored], reduction="none")
    found = {kind: losses[kinds[scored] == kind] for kind in (WORD, MARK, JUDGEMENT)}
    return {kind: values.mean() for kind, values in found.items() if values.numel()}


def fit(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    sample: Callable[[random.Random], Lesson],
    recipe: Recipe,
    log: Path,
    *,
    device: str = "cpu",
    every: int = 250,
    keep: Callable[[int, dict[str, Tensor]], None] = lambda step, weights: None,
) -> dict[str, Tensor]:
    """Trains `model` in place and returns the averaged weights (float32, CPU). `log` gets one JSON object per 50 steps.

    `keep` is called with the averaged weights every `every` steps, so that a long run can be looked at and survives its end.
    """
    model.to(device).train()
    if device == "cpu":  # the fused attention's backward pass is a third slower than the plain one at these lengths
        model.set_attn_implementation("eager")
    decay = [p for p in model.parameters() if p.ndim >= 2]
    flat = [p for p in model.parameters() if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": flat, "weight_decay": 0}]
    optimiser = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    loader = DataLoader(LessonStream(sample, processor, recipe), batch_size=None, num_workers=1, prefetch_factor=4)
    weights = {WORD: 1.0, MARK: recipe.mark, JUDGEMENT: recipe.judgement}
    began, tokens = time.monotonic(), 0
    losses: dict[int, list[float]] = {kind: [] for kind in weights}
    for step, batch in enumerate(itertools.islice(loader, recipe.steps)):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, recipe)
        inputs = {name: value.to(device) for name, value in batch.items()}
        with torch.autocast(device, torch.bfloat16):
            parts = lesson_losses(model, inputs)
            loss = sum((weights[kind] * part for kind, part in parts.items()), torch.zeros((), device=device))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        blend = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - blend) if value.is_floating_point() else average[name].copy_(value)
        for kind, part in parts.items():
            losses[kind].append(part.item())
        tokens += int(batch["attention_mask"].sum())
        if (step + 1) % 50 == 0:
            took = time.monotonic() - began
            names = {WORD: "loss", MARK: "marks", JUDGEMENT: "judgements"}
            means = {names[kind]: round(sum(values) / len(values), 4) for kind, values in losses.items() if values}
            line = {"step": step + 1, **means, "tokens_per_s": round(tokens / took), "s": round(took)}
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
            for values in losses.values():
                values.clear()
        if (step + 1) % every == 0:
            keep(step + 1, average)
    return {name: value.cpu() for name, value in average.items()}
