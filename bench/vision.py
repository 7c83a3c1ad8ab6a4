"""How often the vision tower runs in a gradient-cached step, and what is saved by keeping its output between the passes.

    python -m bench.train vision      # on CPU: the published 32 blocks at a reduced width, random weights, real image sizes

The number of passes does not depend on the width, but the seconds do. `bench.real_step` measures a step on a GPU at the real width.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, Qwen2VLImageProcessor

from pocket.training.train_models import MODELS
from schemas.training import LoraSettings, LossSettings, ModelSettings
from trainer.data.batches import Batch
from trainer.data.process_group import ProcessGroup
from trainer.data.tower_plan import vision_tower
from trainer.model.embedder import Embedder
from trainer.model.vision_cache import TowerMemory
from trainer.training.step import train_step

SIZES = {"341x256": (341, 256), "800x600": (800, 600)}


def embedder(directory: Path, width: int) -> Embedder:
    """Makes a model with Qwen2.5-VL's patches, windows and blocks, `width` instead of 1,280, and a language model of two layers."""
    known: dict[str, Any] = Qwen2_5_VLConfig.from_pretrained(MODELS / "base").to_dict()
    vision = {"depth": 32, "hidden_size": width, "intermediate_size": 2 * width, "num_heads": 2, "patch_size": 14, "window_size": 112,
              "spatial_merge_size": 2, "fullatt_block_indexes": [7, 15, 23, 31], "out_hidden_size": known["text_config"]["hidden_size"]}  # fmt: skip
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(**known | {"vision_config": vision})
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(directory)
    processor = Qwen2_5_VLProcessor.from_pretrained(MODELS / "base")
    processor.image_processor = Qwen2VLImageProcessor(size={"shortest_edge": 56**2, "longest_edge": 501760})
    processor.save_pretrained(directory)
    settings = ModelSettings(base=str(directory), lora=LoraSettings(r=8, alpha=16), train_projector=True)
    return Embedder.create(settings, "pocket").train()


def batch_of(embedder: Embedder, size: tuple[int, int], pairs: int, chunk: int) -> Batch:
    rng = np.random.default_rng(0)
    encoder = embedder.encoder()

    def picture() -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))

    names = [f"q{i}" for i in range(pairs)]
    queries = [
        encoder.encode_query(name, "Find it.", "a red square", picture(), written="a square", labelled=True) for name in names
    ]
    found = [encoder.encode_candidate(f"c{i}", "a square", picture()) for i in range(pairs)]
    dids = [row.name for row in found]
    sides = [encoder.make_chunks(rows, chunk, 10**9) for rows in (queries, found)]
    return Batch(0, names, sides[0], sides[1], dids, [frozenset([did]) for did in dids], pairs, at_once=False)


def measured(model: Embedder, batch: Batch, gib: float, rounds: int) -> tuple[int, float, float, dict[str, torch.Tensor]]:
    """Returns (passes through the tower, seconds of a step, seconds in the tower's blocks, gradients)."""
    calls, in_tower, began = [], [0.0], [0.0]
    tower = vision_tower(model.model)
    assert tower is not None

    def first(*_: Any) -> None:
        calls.append(1)
        began[0] = time.perf_counter()

    def last(*_: Any) -> None:
        in_tower[0] += time.perf_counter() - began[0]

    hooks = [tower.blocks[0].register_forward_pre_hook(first), tower.blocks[-1].register_forward_hook(last)]
    seconds = []
    for turn in range(rounds + 1):  # the first warms up
        if turn == 1:
            calls.clear()
            in_tower[0] = 0.0
        model.zero_grad()
        start = time.perf_counter()
        train_step(model, batch, LossSettings(), ProcessGroup(0, 1, torch.device("cpu")), vision_cache_gib=gib)
        seconds.append(time.perf_counter() - start)
    for hook in hooks:
        hook.remove()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return len(calls) // rounds, sum(seconds[1:]) / rounds, in_tower[0] / rounds, gradients


def table(pairs: int, chunk: int, width: int, rounds: int) -> Table:
    found = Table(
        f"{pairs} pairs with images, {chunk} rows per pass, 32 blocks of {width}",
        "passes", "s/step", "of them in the tower", "kept", "largest difference of an embedding, of a gradient",
    )  # fmt: skip
    with TemporaryDirectory() as directory:
        model = embedder(Path(directory), width)
        for name, size in SIZES.items():
            batch = batch_of(model, size, pairs, chunk)
            twice = measured(model, batch, 0.0, rounds)
            once = measured(model, batch, 4.0, rounds)
            held, apart = 0, 0.0
            for part in [*batch.queries, *batch.candidates]:
                with torch.no_grad(), TowerMemory(model.model, 2**40).record() as seen:
                    expected, _ = model(part)
                with torch.no_grad():
                    apart = max(apart, float((model(part, seen=seen[0])[0] - expected).abs().max()))
                held += seen[0].bytes
            largest = max(float(value.abs().max()) for value in twice[3].values())
            differing = max(float((once[3][name] - value).abs().max()) for name, value in twice[3].items()) / largest
            found.add_row(f"{name}, run again", f"{twice[0]}", f"{twice[1]:.2f}", f"{twice[2]:.2f}", "", "")
            kept = f"{held / 2**20:.1f} MiB"
            found.add_row(
                f"{name}, kept", f"{once[0]}", f"{once[1]:.2f}", f"{once[2]:.2f}", kept, f"{apart:.1e}, {differing:.1e}"
            )
    return found
