"""Bytes normalised on the device equal the processor's pixel values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2VLImageProcessor

from pocket.training.train_models import MODELS
from trainer.data.raw_pixels import PixelScale

PROCESSORS = {
    "Qwen2.5-VL, pocket": lambda: AutoProcessor.from_pretrained(MODELS / "base").image_processor,
    "Qwen2.5-VL, published": lambda: Qwen2VLImageProcessor(size={"shortest_edge": 56**2, "longest_edge": 200**2}),
    "Qwen3-VL, published": lambda: Qwen2VLImageProcessor(
        patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3, size={"shortest_edge": 64**2, "longest_edge": 200**2}
    ),
}


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = ((120, 90), (341, 256), (64, 64), (120, 90))
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)) for width, height in sizes]


@pytest.mark.parametrize("name", list(PROCESSORS))
def test_pixel_values_equal_the_processors(name: str) -> None:
    processor = PROCESSORS[name]()
    expected = processor(images=pictures(), return_tensors="pt")
    scale = PixelScale.of(processor)
    assert scale is not None
    packed = scale.make_patches(processor, pictures())
    assert packed["pixel_values"].dtype == torch.uint8
    assert packed["pixel_values"].nbytes * 8 == expected["pixel_values"].nbytes
    assert torch.equal(packed["image_grid_thw"], expected["image_grid_thw"])
    torch.testing.assert_close(scale.normalise(packed["pixel_values"]), expected["pixel_values"], atol=1e-6, rtol=1e-6)


def test_other_image_processors_are_left_alone() -> None:
    assert PixelScale.of(Qwen2VLImageProcessor(do_normalize=False)) is None
