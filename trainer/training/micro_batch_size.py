"""`batch.micro_batch_size: auto`: the number of sequences that the GPU can process at once, tried out before the first step.

Forward and backward passes are run over growing numbers of the longest sequences in a sample of the data. Their peak memory,
with the optimiser's state and the kept vision states, must stay within a share of the GPU's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from pipeline.files.durable import replace_text
from pipeline.files.state import read_json
from schemas.errors import ConfigError
from trainer.data.batches import CPU_CHUNK, BatchSource
from trainer.data.encoding import EncodedSequence
from trainer.data.process_group import ProcessGroup
from trainer.model.embedder import Embedder

STEP: Final = 4
"""Chunks above this size are multiples of it."""
SAMPLE: Final = 256
"""Queries among whose sequences the longest are found."""


def find_largest(measure: Callable[[int], float | None], limit: float, most: int) -> int:
    """The largest chunk up to `most` whose memory stays within the limit; 0 if none does.

    measure: chunk -> bytes, growing with the chunk; None if out of memory. It is called about 2 log2(most) times.
    """

    def fits(chunk: int) -> bool:
        used = measure(chunk)
        return used is not None and used <= limit

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
    """Sets the source's chunk if it is `auto`, the same in all processes, and records it in the run's file.

    Returns a line about it. A resumed run keeps its size. Raises ConfigError if not even one sequence fits.
    """
    if source.config.batch.micro_batch_size != "auto":
        return None
    recorded: int | None = processes.gather_objects(read_json(run).get("chunk") if processes.first else None)[0]
    if recorded is not None:
        source.chunk = recorded
        return f"batch.micro_batch_size: auto is {recorded} sequences, as when the run began"
    if processes.device.type != "cuda":
        source.chunk, how = CPU_CHUNK, "the fixed value on CPU"
    else:
        source.chunk = min(processes.gather_objects(_probe(embedder, source, processes)))
        how = f"within {source.config.batch.memory_share:.0%} of the memory of each GPU"
    if not source.chunk:
        raise ConfigError(
            f"not even one sequence fits {source.config.batch.memory_share:.0%} of the GPU's memory",
            "set model.gradient_checkpointing, or lower model.max_pixels, model.lora.r or batch.vision_cache_gib",
        )
    if processes.first:
        replace_text(run, json.dumps(read_json(run) | {"chunk": source.chunk}, indent=1) + "\n")
    return f"batch.micro_batch_size: auto is {source.chunk} sequences, {how}"


def _probe(embedder: Embedder, source: BatchSource, processes: ProcessGroup) -> int:
    batch, device = source.config.batch, processes.device
    sequences = sorted(source.sample(SAMPLE), key=lambda sequence: count_tokens(source, sequence), reverse=True)
    share = -(-batch.global_batch_size // processes.size) * (2 + source.config.data.negatives_per_query)
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    trained = sum(p.numel() for p in embedder.parameters() if p.requires_grad)
    later = 8 * trained + batch.vision_cache_gib * 2**30  # Adam's two moments, allocated in the first step
    route = source.config.loss.route_weight

    def measure(chunk: int) -> float | None:
        longest = (sequences * -(-chunk // len(sequences)))[:chunk]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            for part in source.encoder.make_chunks(longest, batch.forward_batch_size or chunk, batch.micro_batch_patches):
                vectors, losses = embedder(part.to(device), route=route)
                (vectors.sum() + losses.sum()).backward()
        except torch.cuda.OutOfMemoryError:
            return None
        finally:
            embedder.zero_grad(set_to_none=True)
        return float(torch.cuda.max_memory_allocated(device)) + later

    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # the trial leaves the training's random state alone
        largest: int = find_largest(measure, batch.memory_share * total - others, share)
    torch.cuda.empty_cache()
    return largest


def count_tokens(source: BatchSource, sequence: EncodedSequence) -> int:
    """Tokens of a sequence, including those of its images."""
    return int(source.encoder.make_chunk([sequence]).inputs["attention_mask"].sum())
