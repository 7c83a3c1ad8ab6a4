"""What the loaders of a node hold in /dev/shm, told before the first of them is started.

A container that gives too little (Docker's default is 64 MB) kills a worker with a bus error in the middle of a batch.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

from schemas.errors import ConfigError
from trainer.data.batches import BatchSource
from trainer.distributed import ProcessGroup

SHARED: Final = Path("/dev/shm")  # noqa: S108 (where torch's workers hand their tensors over; nothing of ours is written there)
MARGIN: Final = 1.25
"""Batches differ in size, and one is on its way from each loader."""


def row_bytes(source: BatchSource, queries: int = 16) -> float:
    """Mean of the rows of some queries and their positives, with their pictures, as they travel."""
    rows = source.sample(queries)
    chunks = source.encoder.chunks(rows, source.chunk, source.config.batch.micro_batch_patches)
    total = 0

    def count(tensor: object) -> object:
        nonlocal total
        total += tensor.nbytes  # type: ignore[attr-defined]
        return tensor

    for chunk in chunks:
        chunk.changed(count)
    return total / len(rows)


def needed(source: BatchSource, processes: int, each: float) -> float:
    """Bytes in /dev/shm of a node with so many processes, at so many bytes a row."""
    config = source.config
    rows = config.batch.global_batch_size / source.world_size * (2 + config.data.hard_negatives)
    return MARGIN * processes * config.data.workers * config.data.prefetch * rows * each


def check_shared_memory(source: BatchSource, group: ProcessGroup, shared: Path = SHARED) -> str | None:
    """What to tell about it, or None where no loader uses it. Raises ConfigError, in every process, if a node has less."""
    if not source.config.data.workers or not shared.is_dir():
        return None
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", source.world_size))
    each = row_bytes(source)
    wanted = needed(source, processes, each)
    free = os.statvfs(shared).f_bavail * os.statvfs(shared).f_frsize
    data = source.config.data
    told = (
        f"loaders hold up to {_size(wanted)} in {shared} ({processes} x {data.workers} workers x {data.prefetch} batches, "
        f"{_size(each)} a row), which has {_size(free)}"
    )
    short = [told for told, is_short in group.gather_objects((told, wanted > free)) if is_short]
    if short:
        raise ConfigError(
            short[0],
            f"docker run --shm-size={math.ceil(wanted / 2**30)}g, or lower data.workers or data.prefetch",
        )
    return told


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
