"""Where the tokens of a row stand in text and pictures, told in the loader's workers.

Left to the model this is looked for at every forward pass, row by row on the GPU, which has to be waited for at each picture.
The rule is that of Qwen2-VL and its successors: a text token follows what came before it, the tokens of a picture stand at one
time in rows and columns, and what follows goes on after the longer of its sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def mrope_positions(is_image: Tensor, mask: Tensor, grids: Tensor | None, merge: int) -> Tensor:
    """(3, rows, length): time, row and column of every token; 0 on padding.

    is_image, mask (rows, length): tokens of pictures; tokens that are none of the padding. grids (pictures, 3): patches of each
    picture in the order of the rows, in time, height and width. merge: patches to a token, on a side.
    """
    sizes: Iterator[Sequence[int]] = iter(grids.tolist() if grids is not None else ())
    found = np.zeros((3, *is_image.shape), np.int64)
    for row, (visual, real) in enumerate(zip(is_image.numpy().astype(bool), mask.numpy().astype(bool), strict=True)):
        found[:, row, real] = _row(visual[real], sizes, merge)
    return torch.from_numpy(found)


def _row(visual: NDArray[np.bool_], sizes: Iterator[Sequence[int]], merge: int) -> NDArray[np.int64]:
    places = np.empty((3, len(visual)), np.int64)
    at, now = 0, 0  # token, position
    pictures = np.flatnonzero(visual)
    while at < len(visual):
        if not visual[at]:
            following = pictures[np.searchsorted(pictures, at) :]
            end = int(following[0]) if len(following) else len(visual)
            places[:, at:end] = np.arange(now, now + end - at)
            now += end - at
        else:
            time, height, width = next(sizes)
            height, width = height // merge, width // merge
            end = at + time * height * width
            places[:, at:end] = now + np.indices((time, height, width)).reshape(3, -1)
            now += max(height, width)
        at = end
    return places
