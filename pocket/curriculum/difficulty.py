"""Difficulty of the lessons. The long course has demanding ones: several changes in a request, three hops.

This is a context setting and not an argument, because every kind of lesson draws queries, through several functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_DEMANDING: ContextVar[bool] = ContextVar("demanding", default=False)


def is_demanding() -> bool:
    return _DEMANDING.get()


@contextmanager
def demanding() -> Iterator[None]:
    """Makes lessons drawn within the context ask for several changes and three hops too."""
    before = _DEMANDING.set(True)
    try:
        yield
    finally:
        _DEMANDING.reset(before)
