"""The tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor

from trainer.data.raw_pixels import PixelScale

IGNORE: Final = -100
"""The label of a position that has none."""


@dataclass(slots=True)
class MicroBatch:
    """Sequences of one forward pass, right-padded.

    inputs: `input_ids`, `attention_mask`, `mm_token_type_ids` of shape (sequences, length); `position_ids` of shape
        (3, sequences, length); if there are images, `image_grid_thw` (images, 3) and `pixel_values` (patches, channels, values)
        in uint8 until the micro-batch is moved `to` its device, then (patches, values) in float32.
    labels: (sequences, length); the token that should *follow* each position, IGNORE where there is no label.
    last: (sequences,); the position of the embedding.
    places: (sequences,); the index of the sequence's embedding in the batch, -1 for none.
    names: qid or did of each sequence.
    learnt: (labelled,); the positions with labels, in the flattened (sequences * length).
    tower: the vision tower's windows and positions (`TowerPlan`), computed in advance.
    host: tensors that stay on the CPU, so that reading them does not wait for the GPU.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    last: Tensor
    places: Tensor
    names: list[str]
    learnt: Tensor
    tower: dict[str, Tensor] = field(default_factory=dict)
    host: dict[str, Tensor] = field(default_factory=dict)
    scale: PixelScale | None = None

    def to(self, device: torch.device, *, pixels: bool = True) -> MicroBatch:
        """A copy on the device. `pixels=False` drops the pixel values."""
        inputs = {name: value for name, value in self.inputs.items() if pixels or name != "pixel_values"}
        moved = replace(self, inputs=inputs, host={}).map_tensors(lambda tensor: tensor.to(device, non_blocking=True))
        raw = moved.inputs.get("pixel_values")
        if raw is not None and raw.dtype == torch.uint8 and self.scale is not None:
            moved.inputs["pixel_values"] = self.scale.normalise(raw)
        return replace(moved, host=self.host)

    def map_tensors(self, change: Callable[[Any], Any]) -> MicroBatch:
        """A copy with `change` applied to every tensor."""
        dicts = [{name: change(value) for name, value in part.items()} for part in (self.inputs, self.tower, self.host)]
        flat = {name: change(getattr(self, name)) for name in ("labels", "last", "places", "learnt")}
        return replace(self, inputs=dicts[0], tower=dicts[1], host=dicts[2], **flat)

    def __len__(self) -> int:
        return len(self.names)
