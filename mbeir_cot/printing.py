"""Consoles for commands. Callers `escape` foreign texts; emoji codes and line folding are off."""

from __future__ import annotations

from rich.console import Console


def console(*, stderr: bool = False, least_width: int = 0) -> Console:
    """least_width: width of tables if the output is not a terminal."""
    plain = Console(stderr=stderr, highlight=False, soft_wrap=True, emoji=False)
    if not least_width or plain.is_terminal:
        return plain
    return Console(stderr=stderr, highlight=False, soft_wrap=True, emoji=False, width=max(least_width, plain.width))
