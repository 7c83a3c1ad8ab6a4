"""What a training step costs, by arithmetic: for `train --dry-run` and `bench.cost`. What was measured says where.

FLOPs are counted as the measurement counted them (`bench.real_step`): two for each weight and token of a forward pass, four
where a gradient passes through; frozen weights have none of their own, and nothing of the vision tower is differentiated.
Passes that gradient caching and checkpointing run again are no useful work: they are in the share of the peak.
"""

from __future__ import annotations

from typing import Final

MEASURED_ON: Final = "H200"
MEASURED_SHARE: Final = {True: 0.135, False: 0.185}
"""Useful FLOP/s of a step over the peak, with (True) and without gradient checkpointing: Qwen2.5-VL-7B's shape with random
weights, LoRA r 128, pictures of 341x256, chunk 32 and 16, on one GPU; before the vision tower ran once a step and positions
were found in the workers."""
MEASURED_EXECUTED: Final = 0.27
"""The same with everything that was run again."""
PEAK: Final = 989e12
"""FLOP/s of an H100 or H200 SXM in bfloat16, dense (data sheet)."""

KEPT: Final = {True: 0.88e6, False: 9.6e6}
"""Bytes that the backward pass keeps for a token of the 7B. With checkpointing: measured on CPU at a quarter of the width and
scaled; the formula then says 36 GB where 35 were measured on an H200 (chunk 32). Without: fitted to the 70 GB there."""
LAYER: Final = 2e9
VOCABULARY: Final = 5e9
"""Bytes of one layer run again and of logits and copies of the vocabulary's matrices, of the 7B; assumed."""
HIDDEN, LAYERS, WORDS = 3584, 28, 152064

PUBLISHED_ROWS: Final = 575_442 + 518_311
"""M-BEIR-CoT's records, as the paper gives them."""
PUBLISHED_TOKENS: Final = {"trace": 473.0, "direct": 404.6, "always-reason": 535.0}
"""Of a query, what it learns and its positive (`bench.cost`), where there is no data to count."""
PUBLISHED_PATCHES: Final = 570.0
"""Of the pictures of both."""


def useful_flop(language: float, vision: float, *, tokens: float, patches: float) -> float:
    """Of a step over so many text tokens (visual ones among them) and image patches.

    language: parameters of the language model with its adapter, without the vocabulary; vision: of the tower with its merger.
    """
    return 4 * language * tokens + 2 * vision * patches


def train_memory(
    frozen_bytes: float, trained: float, *, tokens: float, checkpointing: bool, hidden: int, layers: int, words: int
) -> float:
    """Bytes on a GPU: weights, what is trained with its gradient and Adam's moments in float32, what the backward pass keeps.

    tokens: of a chunk.
    """
    kept = tokens * KEPT[checkpointing] * hidden * layers / (HIDDEN * LAYERS)
    return frozen_bytes + 16 * trained + kept + LAYER * hidden / HIDDEN + VOCABULARY * hidden * words / (HIDDEN * WORDS)
