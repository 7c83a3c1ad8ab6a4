"""AdamW over the trained parameters, and the learning rate of each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from schemas.training import OptimiserSettings
from trainer.model.embedder import Embedder


def make_optimiser(embedder: Embedder, settings: OptimiserSettings) -> torch.optim.AdamW:
    """Two groups: the token rows, whose learning rate is multiplied by `token_lr_multiplier`, and all other parameters."""
    token_rows: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in embedder.named_parameters():
        if parameter.requires_grad:
            (token_rows if "trainable_tokens" in name else others).append(parameter)
    groups = [{"params": others, "factor": 1.0}, {"params": token_rows, "factor": settings.token_lr_multiplier}]
    return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)


def set_learning_rate(optimiser: torch.optim.Optimizer, settings: OptimiserSettings, step: int, steps: int) -> None:
    """For the step after `step` of `steps` steps."""
    for group in optimiser.param_groups:
        group["lr"] = settings.lr * group["factor"] * lr_factor(step, steps, settings)


def lr_factor(step: int, steps: int, settings: OptimiserSettings) -> float:
    """Factor on the learning rate: linear warm-up, then a half cosine to zero."""
    warmup = round(settings.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
