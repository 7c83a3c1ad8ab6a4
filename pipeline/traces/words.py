"""The words of a text, and its normal form: what screens and near-duplicates compare."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

WORD: Final = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


@lru_cache(maxsize=64)
def find_words(text: str) -> list[str]:
    """Lower case. Cached, since all screens read the same two texts: do not change the list."""
    return WORD.findall(text.lower())


def normalised(text: str) -> str:
    """Lower case, words only, one space between: equal for texts that differ in case, punctuation and spacing."""
    return " ".join(find_words(text))
