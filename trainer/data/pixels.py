"""Pictures as bytes on their way to the GPU, and what the processor would have made of them there.

A processor of Qwen's gives patches in float32, each twice: a picture stands still for the two frames of a patch. As bytes,
once, they are an eighth of that, in the loader's shared memory and on the bus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PixelScale:
    """From bytes to pixel values: (byte - mean) / std in each channel. frames: how often a patch is repeated."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    frames: int

    @classmethod
    def of(cls, processor: Any) -> Self | None:
        """None for an image processor that does something else with bytes than scale and normalise them."""
        if not (processor.do_rescale and processor.do_normalize and hasattr(processor, "temporal_patch_size")):
            return None
        # in float32, as the processor fuses them
        mean, std = (
            torch.tensor(values) * (1.0 / processor.rescale_factor) for values in (processor.image_mean, processor.image_std)
        )
        return cls(mean, std, processor.temporal_patch_size)

    def patches(self, processor: Any, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """`image_grid_thw`; `pixel_values` (patches, channels, values) in uint8, or the processor's own if not bytes."""
        found = processor(images=list(pictures), return_tensors="pt", do_rescale=False, do_normalize=False)
        whole = found["pixel_values"]
        if whole.dtype != torch.uint8:  # resized in another way
            return dict(processor(images=list(pictures), return_tensors="pt"))
        once = whole.unflatten(1, (len(self.mean), self.frames, -1))[:, :, 0].contiguous()
        return {"pixel_values": once, "image_grid_thw": found["image_grid_thw"]}

    def normalised(self, patches: Tensor) -> Tensor:
        """uint8 (patches, channels, values) -> float32 (patches, channels * frames * values), on the device of the patches."""
        values = patches.float()
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):  # numbers: no tensor goes to the device
            values[:, channel].sub_(mean).div_(std)
        return values.unsqueeze(2).expand(-1, -1, self.frames, -1).flatten(1)
