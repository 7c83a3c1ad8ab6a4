"""Estimates what a node's loaders will hold in /dev/shm, before the first of them starts.

In a container with too little (Docker's default is 64 MB) a worker dies of a bus error in the middle of a batch.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

from schemas.errors import ConfigError
from trainer.data.batches import BatchSource
from trainer.data.process_group import ProcessGroup

SHARED: Final = Path("/dev/shm")  # noqa: S108 (torch's workers pass tensors through it; we write nothing there)
MARGIN: Final = 1.25
"""Batches differ in size, and each loader has one in transit."""


def measure_row_bytes(source: BatchSource, queries: int = 16) -> float:
    """Mean bytes per sequence, images included, over some queries and their positives."""
    sequences = source.sample(queries)
    chunks = source.encoder.make_chunks(sequences, source.chunk, source.config.batch.micro_batch_patches)
    total = 0

    def count(tensor: object) -> object:
        nonlocal total
        total += tensor.nbytes  # type: ignore[attr-defined]
        return tensor

    for chunk in chunks:
        chunk.map_tensors(count)
    return total / len(sequences)


def estimate_bytes(source: BatchSource, processes: int, each: float) -> float:
    """Bytes in /dev/shm of a node with this many processes. each: bytes per sequence."""
    config = source.config
    sequences = config.batch.global_batch_size / source.world_size * (2 + config.data.negatives_per_query)
    return MARGIN * processes * config.data.workers * config.data.prefetch * sequences * each


def check_shared_memory(source: BatchSource, group: ProcessGroup, shared: Path = SHARED) -> str | None:
    """A line about what is needed and free; None if no loader uses it.

    Raises ConfigError, in every process, if a node has too little.
    """
    if not source.config.data.workers or not shared.is_dir():
        return None
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", source.world_size))
    each = measure_row_bytes(source)
    wanted = estimate_bytes(source, processes, each)
    free = os.statvfs(shared).f_bavail * os.statvfs(shared).f_frsize
    data = source.config.data
    line = (
        f"loaders hold up to {_format_size(wanted)} in {shared} ({processes} x {data.workers} workers x {data.prefetch} "
        f"batches, {_format_size(each)} per sequence), which has {_format_size(free)}"
    )
    short = [text for text, is_short in group.gather_objects((line, wanted > free)) if is_short]
    if short:
        raise ConfigError(
            short[0],
            f"docker run --shm-size={math.ceil(wanted / 2**30)}g, or lower data.workers or data.prefetch",
        )
    return line


def _format_size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
