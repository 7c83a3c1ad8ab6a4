"""Trains a tiny Qwen2.5-VL on a stream of lessons, with next-token loss on the replies unless another loss is given.

1. Worker processes draw lessons, render images and tokenise, in batches of similar length.
2. AdamW, or Muon for the matrices within the layers, with warm-up and cosine decay over steps or over a given time; matrix
   products in bfloat16 if the hardware supports it, weights in float32.
3. The result is an exponential moving average of the weights, cast to bfloat16.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from pipeline.serving.cpu_features import cpu_multiplies_bfloat16
from pocket.curriculum.example import Lesson
from trainer.model.vision_attention import batch_windows

IGNORE = -100
_INPUTS = ("position_ids", "input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
LENGTH_STEP = 32
LENGTH_POOL = 16
"""Number of batches that are drawn together and sorted by length, so that little is wasted on padding."""


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
    minutes: float | None = None
    """Time after which the course ends, instead of after `steps`, then only a limit; the rate decays with the time used."""
    workers: int = 1
    """Processes that draw lessons, each with its own seed. A GPU, a hundred times faster than a core, needs several."""
    optimiser: Literal["adamw", "muon"] = "adamw"


Batch = dict[str, Tensor]
Collate = Callable[[list[Lesson], Qwen2_5_VLProcessor], Batch]
Losses = Callable[[Batch], dict[str, Tensor]]
"""The named terms of a loss; the loss is their sum."""


def prompts_of(lessons: list[Lesson], processor: Qwen2_5_VLProcessor) -> tuple[list[str], Batch]:
    """Renders the prompts with the chat template and one token per image patch, and returns the images' model inputs too."""
    images = [image for lesson in lessons for image in lesson.images]
    visual = processor.image_processor(images=images, return_tensors="pt") if images else {}
    merge = processor.image_processor.merge_size**2
    counts = iter([int(grid.prod()) // merge for grid in visual["image_grid_thw"]] if images else [])
    prompts = []
    for lesson in lessons:
        prompt = processor.tokenizer.apply_chat_template(lesson.messages, tokenize=False, add_generation_prompt=True)
        first, *others = prompt.split(processor.image_token)
        prompts.append(first + "".join(processor.image_token * next(counts) + piece for piece in others))
    return prompts, dict(visual)


def collate(lessons: list[Lesson], processor: Qwen2_5_VLProcessor, *, with_reply: bool = True) -> Batch:
    """Makes right-padded model inputs; `labels` hold the reply and the end of turn (padding and prompt are ignored).

    Without replies the rows end in the generation prompt and are left-padded, as `generate` needs.
    """
    tokenizer = processor.tokenizer
    prompts, visual = prompts_of(lessons, processor)
    rows, starts = [], []
    for lesson, prompt in zip(lessons, prompts, strict=True):
        prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
        reply_ids = [*tokenizer(lesson.reply, add_special_tokens=False).input_ids, tokenizer.eos_token_id] if with_reply else []
        rows.append(prompt_ids + reply_ids)
        starts.append(len(prompt_ids))
    length = max(map(len, rows))
    if with_reply:  # few lengths: on CPU every new shape costs a compilation of its matrix products
        length += -length % LENGTH_STEP
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        place = slice(0, len(row)) if with_reply else slice(length - len(row), length)
        ids[i, place] = torch.tensor(row)
        mask[i, place] = 1
        if with_reply:
            labels[i, start : len(row)] = ids[i, start : len(row)]
    batch = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == processor.image_token_id).int(), **visual}
    return batch | {"labels": labels} if with_reply else batch


class LessonStream(IterableDataset[Batch]):
    """Endless batches drawn by ``sample(rng)``, determined by the seed and the number of workers."""

    def __init__(
        self,
        sample: Callable[[random.Random], Lesson],
        processor: Qwen2_5_VLProcessor,
        recipe: Recipe,
        collated: Collate = collate,
        config: Qwen2_5_VLConfig | None = None,
    ) -> None:
        self.sample, self.processor, self.recipe, self.collated = sample, processor, recipe, collated
        self.config = config

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        worker = get_worker_info()
        stream = f":{worker.id}" if worker is not None and worker.num_workers > 1 else ""
        rng = random.Random(f"lessons:{self.recipe.seed}{stream}")  # noqa: S311
        positions = self._positions()
        while True:
            drawn = [self.sample(rng) for _ in range(self.recipe.batch * LENGTH_POOL)]
            drawn.sort(key=_length)
            batches = [drawn[i : i + self.recipe.batch] for i in range(0, len(drawn), self.recipe.batch)]
            rng.shuffle(batches)
            for batch in batches:
                made = self.collated(batch, self.processor)
                yield made | positions(made)

    def _positions(self) -> Callable[[Batch], Batch]:
        """Adds the positions in text and images if there is a config; on a GPU the model would compute them row by row."""
        if self.config is None:
            return lambda batch: {}
        with torch.device("meta"):
            model: Any = Qwen2_5_VLForConditionalGeneration(self.config).model
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")

        def positions(batch: Batch) -> Batch:
            found, _ = model.get_rope_index(**{name: batch[name] for name in names if name in batch})
            return {"position_ids": found}

        return positions


def _length(lesson: Lesson) -> tuple[int, int]:
    return len(lesson.images), len(lesson.reply) + sum(len(part) for part in lesson.parts if isinstance(part, str))


def learning_rate(step: int, recipe: Recipe, seconds: float = 0.0) -> float:
    """Returns the learning rate of a step. `seconds`, the time used so far, matters if the recipe is limited by time."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    if recipe.minutes is not None:
        progress = min(1.0, seconds / (60 * recipe.minutes))
    else:
        progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def optimisers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Makes Muon for the matrices within the layers and AdamW for embeddings, biases and scales; or AdamW for everything."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hidden = [p for name, p in named if p.ndim == 2 and ("layers." in name or "blocks." in name)]
    inner = {id(p) for p in hidden} if recipe.optimiser == "muon" else set()
    decay = [p for _, p in named if p.ndim >= 2 and id(p) not in inner]
    flat = [p for _, p in named if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": flat, "weight_decay": 0}]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)]
    if inner:  # its rates and decay are AdamW's, by this adjustment
        decayed = recipe.weight_decay
        made.append(torch.optim.Muon(hidden, lr=recipe.lr, weight_decay=decayed, adjust_lr_fn="match_rms_adamw"))
    return made


def model_inputs(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name in _INPUTS}


def reply_losses(model: Qwen2_5_VLForConditionalGeneration) -> Losses:
    """Returns the mean next-token loss over the replies; logits are computed for labelled positions only."""

    def losses(batch: Batch) -> dict[str, Tensor]:
        hidden = model.model(**model_inputs(batch)).last_hidden_state[:, :-1]
        labels = batch["labels"][:, 1:]
        scored = labels != IGNORE
        return {"loss": nn.functional.cross_entropy(model.lm_head(hidden[scored]).float(), labels[scored])}

    return losses


def fit(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    sample: Callable[[random.Random], Lesson],
    recipe: Recipe,
    log: Path,
    *,
    device: str = "cpu",
    collated: Collate = collate,
    losses: Callable[[Qwen2_5_VLForConditionalGeneration], Losses] = reply_losses,
    every: int = 500,
    keep: Callable[[int, dict[str, Tensor]], None] = lambda step, weights: None,
) -> dict[str, Tensor]:
    """Trains `model` in place and returns the averaged weights (float32, CPU). `log` gets one JSON object per 50 steps.

    `keep` is called with the averaged weights every `every` steps, so that a long run can be inspected and is not lost if it is
    killed.
    """
    model.to(device).train()
    if device == "cpu":  # at these lengths the backward pass of fused attention is a third slower than the plain one
        model.set_attn_implementation("eager")
    made = optimisers(model, recipe)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    floating = [name for name, value in average.items() if value.is_floating_point()]
    config = copy.deepcopy(model.config) if device != "cpu" else None  # before its attention is changed
    loader = DataLoader(
        LessonStream(sample, processor, recipe, collated, config),
        batch_size=None,
        num_workers=recipe.workers,
        prefetch_factor=4,
    )
    losses_of = losses(model)
    if device != "cpu":
        batch_windows(model)  # after the losses, which set the language model's attention
    began, tokens = time.monotonic(), 0
    sums: dict[str, list[Tensor]] = defaultdict(list)
    for step, batch in enumerate(itertools.islice(loader, recipe.steps)):
        used = time.monotonic() - began
        if recipe.minutes is not None and used > 60 * recipe.minutes:
            break
        for optimiser in made:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, recipe, used)
        tokens += int(batch["attention_mask"].sum())
        inputs = {name: value.to(device) for name, value in batch.items()}
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu" or cpu_multiplies_bfloat16()):
            parts = losses_of(inputs)
            loss = torch.stack(list(parts.values())).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for optimiser in made:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        blend = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            state = model.state_dict()
            torch._foreach_lerp_([average[name] for name in floating], [state[name] for name in floating], 1 - blend)
        for name, part in parts.items():
            sums[name].append(part.detach())
        if (step + 1) % 50 == 0:
            took = time.monotonic() - began
            means = {name: round(float(torch.stack(values).mean()), 4) for name, values in sums.items()}
            line = {"step": step + 1, **means, "tokens_per_s": round(tokens / took), "s": round(took)}
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            sums.clear()
        if (step + 1) % every == 0:
            keep(step + 1, average)
    return {name: value.cpu() for name, value in average.items()}
