"""A sequence as a request of vLLM's engine: its tokens, and its pictures as the trainer's own image processor gives them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from trainer.data.encoding import EncodedSequence, SequenceEncoder


class InputMaker:
    """Makes the requests of one checkpoint.

    sends_bytes: whether pixels are sent as bytes, which vLLM normalises itself, or as the processor's numbers.
    """

    def __init__(self, encoder: SequenceEncoder) -> None:
        self.encoder = encoder
        self.sends_bytes = self._pixels(encoder.prepare(Image.new("RGB", (256, 256))).inputs).dtype == torch.uint8

    def make(self, sequences: Sequence[EncodedSequence], *, prompts_only: bool) -> list[Any]:
        """vLLM's inputs for these sequences. `prompts_only`: without the text after the prompt (for generation)."""
        from vllm.inputs.engine import mm_input, tokens_input  # noqa: PLC0415 (heavy)
        from vllm.multimodal.inputs import (  # noqa: PLC0415
            MultiModalFieldConfig,
            MultiModalKwargsItems,
            PlaceholderRange,
        )

        chunk = self.encoder.make_chunk(sequences, prompts_only=prompts_only)
        tokens = [ids[: last + 1] for ids, last in zip(chunk.inputs["input_ids"].tolist(), chunk.last.tolist(), strict=True)]
        pictures: Iterator[tuple[Tensor, Tensor]] = iter(())
        if "pixel_values" in chunk.inputs:
            grids_P3 = chunk.inputs["image_grid_thw"]
            patches = torch.split(self._pixels(chunk.inputs), grids_P3.prod(-1).tolist())
            pictures = zip(grids_P3, patches, strict=True)
        merge = self.encoder.processor.image_processor.merge_size**2
        inputs = []
        for sequence, ids in zip(sequences, tokens, strict=True):
            if not sequence.pictures:
                inputs.append(tokens_input(ids))
                continue
            of_sequence = [next(pictures) for _ in sequence.pictures]
            sizes = torch.stack([grid for grid, _ in of_sequence]).prod(-1)
            fields = {
                "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", sizes),
                "image_grid_thw": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
            }
            values = {
                "pixel_values": torch.cat([pixels for _, pixels in of_sequence]),
                "image_grid_thw": torch.stack([grid for grid, _ in of_sequence]),
            }
            places, start = [], 0
            for length in (sizes // merge).tolist():
                start = ids.index(self.encoder.processor.image_token_id, start)
                places.append(PlaceholderRange(offset=start, length=length))
                start += length
            hashes = [_digest(grid, pixels) for grid, pixels in of_sequence]
            items = MultiModalKwargsItems.from_hf_inputs(values, fields)
            inputs.append(mm_input(ids, items, {"image": hashes}, {"image": places}))
        return inputs

    def _pixels(self, inputs: dict[str, Tensor]) -> Tensor:
        pixels, scale = inputs["pixel_values"], self.encoder.scale
        return scale.repeat(pixels) if scale is not None and pixels.dtype == torch.uint8 else pixels


def _digest(grid: Tensor, patches: Tensor) -> str:
    """By this vLLM knows a picture that it has encoded already."""
    digest = hashlib.blake2b(str(grid.tolist()).encode(), digest_size=16)
    digest.update(patches.contiguous().numpy().data)
    return digest.hexdigest()
