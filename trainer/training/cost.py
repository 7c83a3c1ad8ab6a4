"""The cost of a training step, by arithmetic, for `train --dry-run` and `bench.cost`. Measured constants name their source.

FLOPs are counted as in the measurement (`bench.real_step`): two per weight and token of a forward pass, four where a gradient
passes through; frozen weights have no gradient of their own, and the vision tower is not differentiated. Passes repeated by
gradient caching and checkpointing are not useful work; they lower the share of the peak instead.
"""

from __future__ import annotations

from typing import Final

MEASURED_ON: Final = "H200"
MEASURED_SHARE: Final = {True: 0.135, False: 0.185}
"""Useful FLOP/s of a step over the peak, with (True) and without gradient checkpointing: Qwen2.5-VL-7B's shape with random
weights, LoRA r 128, images of 341x256, chunks of 32 and 16, on one GPU. Measured before the vision tower's output was kept and
positions were computed in the workers."""
MEASURED_EXECUTED: Final = 0.27
"""The same, with repeated passes counted as work."""
PEAK: Final = 989e12
"""FLOP/s of an H100 or H200 SXM in bfloat16, dense (data sheet)."""

KEPT: Final = {True: 0.88e6, False: 9.6e6}
"""Bytes per token that the 7B keeps for the backward pass. With checkpointing: measured on a CPU at a quarter of the width and
scaled; the formula then gives 36 GB, and 35 were measured on an H200 (chunk 32). Without: fitted to the 70 GB there."""
LAYER: Final = 2e9
VOCABULARY: Final = 5e9
"""Bytes of the 7B for one recomputed layer, and for logits and copies of the vocabulary's matrices; assumed."""
HIDDEN, LAYERS, WORDS = 3584, 28, 152064

PUBLISHED_ROWS: Final = 575_442 + 518_311
"""M-BEIR-CoT's records, according to the paper."""
PUBLISHED_TOKENS: Final = {"trace": 473.0, "direct": 404.6, "always-reason": 535.0}
"""Tokens of a query, its labels and its positive (`bench.cost`), if there is no data to count."""
PUBLISHED_PATCHES: Final = 570.0
"""Image patches of both."""


def useful_flop(language: float, vision: float, *, tokens: float, patches: float) -> float:
    """FLOP of a step. tokens: including image tokens. patches: of images.

    language: parameters of the language model with its adapter, without the vocabulary. vision: of the tower with its merger.
    """
    return 4 * language * tokens + 2 * vision * patches


def train_memory(
    frozen_bytes: float, trained: float, *, tokens: float, checkpointing: bool, hidden: int, layers: int, words: int
) -> float:
    """Bytes on a GPU: weights, trained parameters with gradient and Adam's moments in float32, and activations.

    tokens: of a chunk.
    """
    kept = tokens * KEPT[checkpointing] * hidden * layers / (HIDDEN * LAYERS)
    return frozen_bytes + 16 * trained + kept + LAYER * hidden / HIDDEN + VOCABULARY * hidden * words / (HIDDEN * WORDS)
