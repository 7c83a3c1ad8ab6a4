"""`batch.micro_batch_size: auto`: how many rows the GPU holds at once, tried before the first step.

A forward and backward pass is run over the largest of some rows of the data, for growing numbers of them. What it takes at
most, with the optimiser's state and what is kept of the vision tower, must stay within a share of the GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from pipeline.files.durable import replace_text
from schemas.errors import ConfigError
from trainer.data.batches import CPU_CHUNK, BatchSource
from trainer.data.encoding import EncodedSequence
from trainer.distributed import ProcessGroup
from trainer.model.embedder import Embedder

STEP: Final = 4
"""Chunks beyond this size are multiples of it."""
SAMPLE: Final = 256
"""Queries whose rows are looked at for the largest."""


def largest(takes: Callable[[int], float | None], limit: float, most: int) -> int:
    """The largest chunk up to `most` whose memory stays within the limit; 0 if none does.

    takes: bytes for a chunk, growing with it; None: out of memory. It is called some 2 log2(most) times.
    """

    def fits(chunk: int) -> bool:
        taken = takes(chunk)
        return taken is not None and taken <= limit

    good, chunk = 0, min(STEP, most)
    if not fits(chunk):
        return next((smaller for smaller in range(chunk - 1, 0, -1) if fits(smaller)), 0)
    bad: int | None = None
    while bad is None and chunk < most:
        good = chunk
        chunk = min(2 * chunk, most)
        if not fits(chunk):
            bad = chunk
    if bad is None:
        return most
    while bad - good > STEP:
        middle = (good + bad) // 2 // STEP * STEP
        if middle <= good:
            break
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def settle_chunk(embedder: Embedder, source: BatchSource, run: Path, processes: ProcessGroup) -> str | None:
    """Sets the source's chunk where it is `auto`, the same in all processes, and records it in the run's file.

    Returns what to tell about it. A run that has one keeps it. Raises ConfigError where not even one row fits.
    """
    if source.config.batch.micro_batch_size != "auto":
        return None
    known: int | None = processes.gather_objects(
        json.loads(run.read_text(encoding="utf-8")).get("chunk") if processes.first else None
    )[0]
    if known is not None:
        source.chunk = known
        return f"batch.micro_batch_size: auto is {known} rows, as the run began with"
    if processes.device.type != "cuda":
        source.chunk, how = CPU_CHUNK, "the fixed value on CPU"
    else:
        source.chunk = min(processes.gather_objects(_probe(embedder, source, processes)))
        how = f"within {source.config.batch.memory_share:.0%} of the memory of each GPU"
    if not source.chunk:
        raise ConfigError(
            f"not even one row fits {source.config.batch.memory_share:.0%} of the GPU's memory",
            "set model.gradient_checkpointing, or lower model.max_pixels, model.lora.r or batch.vision_cache_gib",
        )
    if processes.first:
        replace_text(run, json.dumps(json.loads(run.read_text(encoding="utf-8")) | {"chunk": source.chunk}, indent=1) + "\n")
    return f"batch.micro_batch_size: auto is {source.chunk} rows, {how}"


def _probe(embedder: Embedder, source: BatchSource, processes: ProcessGroup) -> int:
    batch, device = source.config.batch, processes.device
    rows = sorted(source.sample(SAMPLE), key=lambda row: length(source, row), reverse=True)
    share = -(-batch.global_batch_size // processes.size) * (2 + source.config.data.hard_negatives)
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    trained = sum(p.numel() for p in embedder.parameters() if p.requires_grad)
    later = 8 * trained + batch.vision_cache_gib * 2**30  # Adam's two moments, which the first step makes
    route = source.config.loss.route_weight

    def takes(chunk: int) -> float | None:
        given = (rows * -(-chunk // len(rows)))[:chunk]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            for part in source.encoder.chunks(given, batch.forward_batch_size or chunk, batch.micro_batch_patches):
                vectors, losses = embedder(part.to(device), route=route)
                (vectors.sum() + losses.sum()).backward()
        except torch.cuda.OutOfMemoryError:
            return None
        finally:
            embedder.zero_grad(set_to_none=True)
        return float(torch.cuda.max_memory_allocated(device)) + later

    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # trying changes nothing of what follows
        found: int = largest(takes, batch.memory_share * total - others, share)
    torch.cuda.empty_cache()
    return found


def length(source: BatchSource, row: EncodedSequence) -> int:
    """Tokens of a row, those of its pictures among them."""
    return int(source.encoder.chunk([row]).last[0]) + 1
