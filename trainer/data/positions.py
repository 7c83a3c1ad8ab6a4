"""M-RoPE positions of tokens in text and images, computed in the loader's workers.

The model would compute them in every forward pass, one sequence after the other on the GPU, and wait for it at each image. The
rule is that of Qwen2-VL and its successors: a text token takes the next position; the tokens of an image share one time and
have the rows and columns of a grid; the next position is beyond the longer side of the grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def compute_mrope_positions(is_image_BL: Tensor, mask_BL: Tensor, grids: Tensor | None, merge: int) -> Tensor:
    """(3, sequences, length): time, row and column of every token; 0 at padding.

    is_image_BL: whether a token is an image's. mask_BL: 0 at padding. grids: (images, 3), the patches of each image in time,
    height and width, in the order of the sequences. merge: patches per token along a side.
    """
    sizes: Iterator[Sequence[int]] = iter(grids.tolist() if grids is not None else ())
    positions_3BL = np.zeros((3, *is_image_BL.shape), np.int64)
    for row, (is_image_L, mask_L) in enumerate(
        zip(is_image_BL.numpy().astype(bool), mask_BL.numpy().astype(bool), strict=True)
    ):
        positions_3BL[:, row, mask_L] = _row_positions(is_image_L[mask_L], sizes, merge)
    return torch.from_numpy(positions_3BL)


def _row_positions(is_image_L: NDArray[np.bool_], sizes: Iterator[Sequence[int]], merge: int) -> NDArray[np.int64]:
    length = len(is_image_L)
    positions_3L = np.empty((3, length), np.int64)
    token, position = 0, 0
    image_tokens = np.flatnonzero(is_image_L)
    while token < length:
        if not is_image_L[token]:
            following = image_tokens[np.searchsorted(image_tokens, token) :]
            end = int(following[0]) if len(following) else length
            positions_3L[:, token:end] = np.arange(position, position + end - token)
            position += end - token
        else:
            time, height, width = next(sizes)
            height, width = height // merge, width // merge
            end = token + time * height * width
            positions_3L[:, token:end] = position + np.indices((time, height, width)).reshape(3, -1)
            position += max(height, width)
        token = end
    return positions_3L
