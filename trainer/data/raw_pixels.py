"""Images as bytes until they reach the GPU, where they are scaled and normalised as the processor would do it.

Qwen's image processor gives patches in float32, each twice, because a still image fills both frames of a patch. Bytes, once,
take an eighth of that in the loader's shared memory and on the bus.
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
    """Bytes to pixel values: (byte - mean) / std in each channel. frames: how often a patch is repeated."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    frames: int

    @classmethod
    def of(cls, processor: Any) -> Self | None:
        """None for an image processor that does not just scale and normalise bytes."""
        if not (processor.do_rescale and processor.do_normalize and hasattr(processor, "temporal_patch_size")):
            return None
        # fused in float32, as the processor does it
        mean, std = (
            torch.tensor(values) * (1.0 / processor.rescale_factor) for values in (processor.image_mean, processor.image_std)
        )
        return cls(mean, std, processor.temporal_patch_size)

    def make_patches(self, processor: Any, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """`image_grid_thw`, and `pixel_values`: (patches, channels, values) in uint8, or as the processor gives them."""
        processed = processor(images=list(pictures), return_tensors="pt", do_rescale=False, do_normalize=False)
        repeated = processed["pixel_values"]
        if repeated.dtype != torch.uint8:  # a processor that resizes in float
            return dict(processor(images=list(pictures), return_tensors="pt"))
        once = repeated.unflatten(1, (len(self.mean), self.frames, -1))[:, :, 0].contiguous()
        return {"pixel_values": once, "image_grid_thw": processed["image_grid_thw"]}

    def normalise(self, patches: Tensor) -> Tensor:
        """uint8 (patches, channels, values) -> float32 (patches, channels * frames * values), on the device of the patches."""
        values = patches.float()
        for channel, (mean, std) in enumerate(
            zip(self.mean, self.std, strict=True)
        ):  # Python numbers: nothing is copied to the device
            values[:, channel].sub_(mean).div_(std)
        return self.repeat(values)

    def repeat(self, patches: Tensor) -> Tensor:
        """(patches, channels, values) -> (patches, channels * frames * values): a still image fills all frames."""
        return patches.unsqueeze(2).expand(-1, -1, self.frames, -1).flatten(1)
