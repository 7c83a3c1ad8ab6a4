"""Vision states of a gradient-cached step, kept from the first pass for the second.

A frozen tower gives the same output in both passes of a step. The inputs of its mergers, which may be trained, are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from trainer.data.tower_plan import vision_tower


@dataclass(frozen=True, slots=True)
class Seen:
    """The inputs of a tower's mergers for a chunk's images: those of the deepstack's layers, then the last layer's."""

    states: tuple[Tensor, ...]

    @property
    def bytes(self) -> int:
        return sum(states.numel() * states.element_size() for states in self.states)

    def merged(self, tower: Any, grids: Tensor, window_index: Tensor | None) -> Any:
        """Applies the mergers: the result of `get_image_features`. grids: (images, 3), on the host."""
        *deep, last = self.states
        sizes = (grids.prod(-1) // tower.spatial_merge_size**2).tolist()
        tokens = tower.merger(last)
        if window_index is not None:  # from the order of windows back to the order of images
            tokens = tokens[torch.argsort(window_index)]
        layers = zip(getattr(tower, "deepstack_merger_list", ()), deep, strict=True)
        return SimpleNamespace(
            pooler_output=torch.split(tokens, sizes),
            deepstack_features=[torch.split(merger(states), sizes) for merger, states in layers],
        )


class TowerMemory:
    """Keeps a frozen tower's states from the first pass of a step, up to `limit` bytes; the rest is computed again."""

    def __init__(self, model: Any, limit: float) -> None:
        self._tower = vision_tower(model)
        self._left = limit if self._tower is not None and _is_frozen(self._tower) else 0.0

    @contextmanager
    def record(self) -> Iterator[list[Seen]]:
        """Surround one forward pass with it. Afterwards the list holds its states, or nothing if they did not fit."""
        kept: list[Seen] = []
        if self._left <= 0 or self._tower is None:
            yield kept
            return
        states: list[Tensor] = []
        mergers = [*getattr(self._tower, "deepstack_merger_list", ()), self._tower.merger]
        hooks = [merger.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0].detach())) for merger in mergers]
        try:
            yield kept
        finally:
            for hook in hooks:
                hook.remove()
        seen = Seen(tuple(states))
        if states and seen.bytes <= self._left:
            self._left -= seen.bytes
            kept.append(seen)


def _is_frozen(tower: nn.Module) -> bool:
    """Whether nothing but mergers is trained."""
    return not any(p.requires_grad and "merger" not in name for name, p in tower.named_parameters())
