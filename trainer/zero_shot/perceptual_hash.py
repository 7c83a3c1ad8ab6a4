"""A difference hash of pictures: near-duplicates, such as one photograph in two sizes, differ in few of its bits.

The picture is reduced to 17x16 pixels; of each colour channel a bit says whether a pixel is brighter than its left neighbour by
more than `_MARGIN` levels (the noise of JPEG is less). A picture with few such steps, a blank one, is like any other and has no
near-duplicates.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIDE: Final = 16
_MARGIN: Final = 4
WORDS: Final = 3 * _SIDE * _SIDE // 64
NEAR: Final = 24
"""Bits of the 768 in which near-duplicates may differ."""
_LEAST: Final = 24
"""Bits that have to be set for a picture to be told from others."""
_BLOCK: Final = 1 << 22

Hashes = NDArray[np.uint64]


def difference_hash(image: Image.Image) -> Hashes:
    """(WORDS,)."""
    small = np.asarray(image.convert("RGB").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX), np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1] + _MARGIN).view(np.uint64)


def near_duplicates(asked: Hashes, known: Hashes) -> NDArray[np.bool_]:
    """Whether each of `asked` (n, WORDS) is within `NEAR` bits of any of `known` (m, WORDS). Compares all with all."""
    found = np.zeros(len(asked), np.bool_)
    telling = known[np.bitwise_count(known).sum(1) >= _LEAST] if len(known) else known
    if not len(telling):
        return found
    step = max(1, _BLOCK // len(telling))
    for start in range(0, len(asked), step):
        part = asked[start : start + step]
        different = np.zeros((len(part), len(telling)), np.uint16)
        for word in range(WORDS):
            different += np.bitwise_count(part[:, word, None] ^ telling[None, :, word])
        plain = np.bitwise_count(part).sum(1) < _LEAST
        found[start : start + step] = (different <= NEAR).any(1) & ~plain
    return found
