"""The vision tower in a gradient-cached step: what it is told beforehand, and what it gave, kept for the second pass.

Where a tower's windows lie and how its positions run follow from the pictures' sizes. Left to the tower they are found by loops
over pictures that wait for the GPU; here they are found once, in the loader's workers.

A frozen tower gives the same in both passes of a step. What reaches its mergers, which may be trained, is kept from the first.
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
    """What reached a tower's mergers for the pictures of a chunk: of the deepstack's layers, then of the last."""

    states: tuple[Tensor, ...]

    @property
    def bytes(self) -> int:
        return sum(states.numel() * states.element_size() for states in self.states)

    def merged(self, tower: Any, grids: Tensor, window_index: Tensor | None) -> Any:
        """As `get_image_features` gives it. grids (pictures, 3) on the host."""
        *deep, last = self.states
        sizes = (grids.prod(-1) // tower.spatial_merge_size**2).tolist()
        tokens = tower.merger(last)
        if window_index is not None:  # windows one after another: back into the order of the pictures
            tokens = tokens[torch.argsort(window_index)]
        layers = zip(getattr(tower, "deepstack_merger_list", ()), deep, strict=True)
        return SimpleNamespace(
            pooler_output=torch.split(tokens, sizes),
            deepstack_features=[torch.split(merger(states), sizes) for merger, states in layers],
        )


class TowerMemory:
    """Keeps what a frozen tower gave in the first pass of a step, up to `limit` bytes; the rest is computed again."""

    def __init__(self, model: Any, limit: float) -> None:
        self._tower = vision_tower(model)
        self._left = limit if self._tower is not None and _frozen(self._tower) else 0.0

    @contextmanager
    def watching(self) -> Iterator[list[Seen]]:
        """Within, one forward pass; afterwards the list holds what is kept of it: nothing, or one."""
        kept: list[Seen] = []
        if self._left <= 0 or self._tower is None:
            yield kept
            return
        states: list[Tensor] = []
        mergers = [*getattr(self._tower, "deepstack_merger_list", ()), self._tower.merger]
        hooks = [merger.register_forward_pre_hook(lambda _, given: states.append(given[0].detach())) for merger in mergers]
        try:
            yield kept
        finally:
            for hook in hooks:
                hook.remove()
        seen = Seen(tuple(states))
        if states and seen.bytes <= self._left:
            self._left -= seen.bytes
            kept.append(seen)


def _frozen(tower: nn.Module) -> bool:
    """Whether only mergers are trained, if anything."""
    return not any(p.requires_grad and "merger" not in name for name, p in tower.named_parameters())
