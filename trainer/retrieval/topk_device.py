"""The scan of `trainer.retrieval.topk` on a GPU.

The rule is the same: one function decides on the device which of equal scores stay, and in which order. Products are in float32
(TF32 is off by default). So ids, order and ties are those of the numpy scan wherever the products are equal; a GPU sums in
another order, so scores may differ from the CPU's in their last digits.

The device holds the queries, one block of the pool, and, for one part of the queries at a time, its products and the scan's
intermediate results: about 20 bytes per product, 0.7 GB for 1,024 queries and 32,768 candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

T = TypeVar("T")


def scan_block(scores_QK: Tensor, positions_QK: Tensor, products_QC: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """The (scores, positions) that a scan in order leaves of those kept so far and of a block of the pool.

    scores_QK, positions_QK: in pool order; unfilled places have -inf and come first. products_QC: of the block that starts at
    position `first`. The results have the form of the arguments. NaN and -inf never enter.

    Let t be the k-th largest score. All above t stay. Of those equal to t, only the ones among the first k scores that are at
    least t ever entered, and each later score above t evicted the earliest of them.
    """
    k = scores_QK.shape[1]
    block_QC = products_QC.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    merged_QM = torch.cat([scores_QK, block_QC], 1)
    threshold_Q1 = merged_QM.topk(k, 1, sorted=False).values.amin(1, keepdim=True)
    above_QM = merged_QM > threshold_Q1
    reaches_QM = merged_QM >= threshold_Q1
    ties_QM = reaches_QM & ~above_QM & (reaches_QM.cumsum(1, dtype=torch.int32) <= k)
    room_Q1 = k - above_QM.sum(1, keepdim=True, dtype=torch.int32)
    ties_so_far_QM = ties_QM.cumsum(1, dtype=torch.int32)
    stays_QM = above_QM | (ties_QM & (ties_so_far_QM[:, -1:] - ties_so_far_QM < room_Q1))
    columns_QK = stays_QM.nonzero()[:, 1].view(-1, k)
    old_QK = positions_QK.gather(1, columns_QK.clamp(max=k - 1))
    return merged_QM.gather(1, columns_QK), torch.where(columns_QK < k, old_QK, columns_QK - k + first)


def scan_pool(
    parts: Sequence[tuple[NDArray[np.float32], int]], pool: Iterable[NDArray[np.float32]], device: torch.device
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """(positions, scores) kept for each part (queries, k), in pool order; -1 and -inf where nothing is.

    The pool is read once, one block ahead of the device.
    """
    queries = [torch.from_numpy(queries_QD).to(device) for queries_QD, _ in parts]
    kept = [
        (torch.full((len(queries_QD), k), -torch.inf, device=device), torch.full((len(queries_QD), k), -1, device=device))
        for queries_QD, k in parts
    ]
    first = most = 0
    for block in _prefetch(pool):
        count = len(block)
        most = max(most, count)
        # a shorter block is padded to use the same kernel, so that equal vectors have equal products in every block
        block_CD = pad(torch.from_numpy(block).to(device), (0, 0, 0, most - count))
        for i, queries_QD in enumerate(queries):
            kept[i] = scan_block(*kept[i], (queries_QD @ block_CD.T)[:, :count], first)
        first += count
    return [(positions_QK.cpu().numpy(), scores_QK.cpu().numpy()) for scores_QK, positions_QK in kept]


def _prefetch(items: Iterable[T]) -> Iterator[T]:
    """The same items, with the next one computed in a thread meanwhile."""
    source, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="blocks") as thread:
        coming = thread.submit(next, source, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, source, end)
            yield item  # type: ignore[misc]
