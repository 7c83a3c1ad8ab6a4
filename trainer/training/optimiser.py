"""AdamW over the trained parameters, or Muon for the LoRA matrices beside it; the learning rate of each step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from schemas.training import OptimiserSettings
from trainer.model.embedder import Embedder


def make_optimiser(embedder: Embedder, settings: OptimiserSettings, batch_size: int) -> torch.optim.Optimizer:
    """Groups: the token rows, whose learning rate is multiplied by `token_lr_multiplier`; all other parameters; with Muon the
    LoRA matrices apart. `batch_size`: the global one, for `lr_scaling`."""
    token_rows: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in embedder.named_parameters():
        if parameter.requires_grad:
            is_matrix = settings.kind == "muon" and (".lora_A." in name or ".lora_B." in name)
            (matrices if is_matrix else token_rows if "trainable_tokens" in name else others).append(parameter)
    scale = batch_factor(settings, batch_size)
    groups = [{"params": others, "factor": scale}, {"params": token_rows, "factor": scale * settings.token_lr_multiplier}]
    adamw = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)
    if settings.kind == "adamw":
        return adamw
    muon = torch.optim.Muon(
        [{"params": matrices, "factor": scale}],
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",  # an entry moves as far as under AdamW, so the same `lr` suits both
    )
    return _Joined(muon, adamw)


class _Joined(torch.optim.Optimizer):
    """Optimisers of different parameters as one: their groups, and one state."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        groups = [group for part in parts for group in part.param_groups]
        super().__init__(groups, {})
        self.param_groups = groups
        self._parts = parts
        self._share()

    def _share(self) -> None:
        """Gives the parts these groups and this state, so that a learning rate set here is theirs."""
        groups = iter(self.param_groups)
        for part in self._parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)  # puts others in their places
        self._share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self._parts:
            part.step()


def batch_factor(settings: OptimiserSettings, batch_size: int) -> float:
    """Factor on the learning rate for a batch of another size than `lr_batch_size`."""
    times = batch_size / settings.lr_batch_size
    return {"none": 1.0, "sqrt": math.sqrt(times), "linear": times}[settings.lr_scaling]


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
