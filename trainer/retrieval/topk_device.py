"""The scan of `trainer.retrieval.topk` on tensors, for pools and query sets that a GPU should multiply.

The rule is the same: which of equal scores stay and in which order is decided on the device by one function, and the products
are float32 ones (TF32 is off unless somebody turns it on). So ids, order and ties are those of the numpy scan wherever the
products are the same numbers; a GPU adds up in another order, so scores may differ from the CPU's in their last digits.

On the device lie the queries, one block of the pool, and for one part of the queries at a time its products and what the scan
makes of them: about 20 bytes for each product, 0.7 GB at 1,024 queries by 32,768 rows.
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


def scanned(scores: Tensor, positions: Tensor, products: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """What a scan in order leaves of the kept and of the next rows of the pool.

    scores, positions: (queries, k), in pool order; slots that hold nothing yet are at -inf and come first. products: (queries,
    rows) of the pool's rows from `first`. Returns scores and positions as they were given. NaN and -inf never enter.

    With t the k-th largest: all above t stay. Of those equal to t only the ones among the first k that are at least t ever
    entered; each later item above t drove out the earliest of them.
    """
    k = scores.shape[1]
    every = torch.cat([scores, products.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)], 1)
    threshold = every.topk(k, 1, sorted=False).values.amin(1, keepdim=True)
    above = every > threshold
    reaches = every >= threshold
    ties = reaches & ~above & (reaches.cumsum(1, dtype=torch.int32) <= k)
    room = k - above.sum(1, keepdim=True, dtype=torch.int32)
    up_to = ties.cumsum(1, dtype=torch.int32)
    stays = above | (ties & (up_to[:, -1:] - up_to < room))
    columns = stays.nonzero()[:, 1].view(-1, k)
    old = positions.gather(1, columns.clamp(max=k - 1))
    return every.gather(1, columns), torch.where(columns < k, old, columns - k + first)


def scan_pool(
    parts: Sequence[tuple[NDArray[np.float32], int]], pool: Iterable[NDArray[np.float32]], device: torch.device
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """For each part, which is (queries, k): the (positions, scores) that are kept, in pool order, -1 at -inf for none.

    The pool is read once, a block ahead of the device.
    """
    queries = [torch.from_numpy(part).to(device) for part, _ in parts]
    kept = [
        (torch.full((len(part), k), -torch.inf, device=device), torch.full((len(part), k), -1, device=device))
        for part, k in parts
    ]
    first = most = 0
    for block in _ahead(pool):
        rows = len(block)
        most = max(most, rows)
        # a shorter block goes through the same kernel, so that equal vectors have equal products wherever they stand
        held = pad(torch.from_numpy(block).to(device), (0, 0, 0, most - rows))
        for i, part in enumerate(queries):
            kept[i] = scanned(*kept[i], (part @ held.T)[:, :rows], first)
        first += rows
    return [(positions.cpu().numpy(), scores.cpu().numpy()) for scores, positions in kept]


def _ahead(items: Iterable[T]) -> Iterator[T]:
    """The same, with the next one made in a thread meanwhile."""
    source, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="blocks") as thread:
        coming = thread.submit(next, source, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, source, end)
            yield item  # type: ignore[misc]
