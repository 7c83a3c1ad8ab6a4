"""How much lessons ask for. The long course asks for more than those before it: several changes in a request, three hops.

A setting of the context and not an argument, since every kind of lesson draws queries, through several hands.
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
    """Lessons drawn within ask for several changes and three hops too."""
    before = _DEMANDING.set(True)
    try:
        yield
    finally:
        _DEMANDING.reset(before)
