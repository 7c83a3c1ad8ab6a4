"""Finds tokens and keys in texts by their full shape, so that a name that only begins like one does not count."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Final

_SHAPES: Final = re.compile(
    r"\bhf_(?P<hf>[A-Za-z0-9]{30,})"
    r"|\bsk-(?P<sk>[A-Za-z0-9_-]{20,})"
    r"|\bAKIA(?P<aws>[0-9A-Z]{16})\b"
    r"|\bgh[pousr]_(?P<gh>[A-Za-z0-9]{30,})|\bgithub_pat_(?P<pat>[A-Za-z0-9_]{40,})"
    r"|\bglpat-(?P<gl>[A-Za-z0-9_-]{20,})|\bxox[abprs]-(?P<slack>[A-Za-z0-9-]{20,})"
    r"|\bBearer\s+(?P<bearer>[A-Za-z0-9._~+/-]{20,})"
    r"|(?P<pem>-----BEGIN [A-Z ]*PRIVATE KEY-----\s*[A-Za-z0-9+/=]{16})"
)
_RUN: Final = 16
"""Shortest run of letters and digits in a token; words joined by hyphens have shorter runs."""
_LEAST_BITS: Final = 3.0
"""Least entropy per character of a run: 20 random letters and digits have about 4 bits, words and serial numbers less."""

_HEADER: Final = re.compile(
    r"(\bauthorization\b['\"]?\s*[:=]\s*)(['\"]?)(?:(?:bearer|basic|token)\s+)?[^\s'\",}]+", re.IGNORECASE
)
_BEARER: Final = re.compile(r"(\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_PASSWORD: Final = re.compile(r"(?<=://)[^\s/@'\"]+:[^\s/@'\"]+(?=@)")


def holds_secret(text: str) -> bool:
    """Whether a text holds what looks like a token or private key."""
    return any(match["pem"] or _is_random(match[match.lastgroup or ""]) for match in _SHAPES.finditer(text))


def without_secrets(text: str, values: Iterable[str] = ()) -> str:
    """The text with `[secret]` for each of `values`, for Authorization headers, passwords in URLs, and all shapes of tokens.

    It removes too much rather than too little: use it for logs, not for data.
    """
    for value in sorted(values, key=len, reverse=True):  # a value may begin with another
        text = text.replace(value, "[secret]")
    text = _HEADER.sub(r"\1\2[secret]", text)
    text = _BEARER.sub(r"\1[secret]", text)
    text = _PASSWORD.sub("[secret]", text)
    return _SHAPES.sub("[secret]", text)


def _is_random(body: str) -> bool:
    for run in re.findall(rf"[A-Za-z0-9]{{{_RUN},}}", body):
        kinds = sum(bool(re.search(kind, run)) for kind in ("[a-z]", "[A-Z]", "[0-9]"))
        if kinds >= 2 and _bits(run) >= _LEAST_BITS:
            return True
    return False


def _bits(run: str) -> float:
    return -sum(count / len(run) * math.log2(count / len(run)) for count in Counter(run).values())
