"""A vision tower's windows and positions, computed from image sizes in the loader's workers.

The tower would compute them itself, in loops over images that wait for the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor
from transformers import vision_utils


@dataclass(frozen=True, slots=True)
class TowerPlan:
    """merge: patches per token along a side. window, patch: side in pixels. table: side of the table of learnt positions."""

    merge: int
    patch: int
    window: int | None
    table: int | None

    @classmethod
    def of(cls, model: Any) -> Self | None:
        """None if the model has no tower like Qwen2.5-VL's or Qwen3-VL's."""
        tower = vision_tower(model)
        if tower is None:
            return None
        size, table = getattr(tower, "window_size", None), getattr(tower, "num_grid_per_side", None)
        return cls(tower.spatial_merge_size, tower.patch_size, size, table)

    def place(self, grids: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(on the device, on the host): the tower's precomputed arguments. grids: (images, 3)."""
        placed = {"position_ids": vision_utils.get_vision_position_ids(grids, self.merge)}
        lengths: dict[str, Tensor] = {}
        if self.window is not None:
            placed["window_index"], lengths["cu_window_seqlens"] = vision_utils.get_vision_window_index(
                grids, spatial_merge_size=self.merge, window_size=self.window, patch_size=self.patch
            )
        if self.table is not None:
            placed["interp_indices"], placed["interp_weights"] = vision_utils.get_vision_interpolation_indices_and_weights(
                grids, num_grid_per_side=self.table, mode="bilinear", align_corners=True, spatial_merge_size=self.merge
            )
        return placed, lengths


def vision_tower(model: Any) -> Any | None:
    """The vision tower of a Qwen2.5-VL, Qwen3-VL or similar model, recognised by its blocks and merger; None for others."""
    tower = getattr(getattr(model, "model", model), "visual", None)
    return tower if tower is not None and hasattr(tower, "blocks") and hasattr(tower, "merger") else None
