"""Consoles for commands. Texts that are not ours go through `escape`; emoji codes and line folding are off."""

from __future__ import annotations

from rich.console import Console


def console(*, stderr: bool = False, least_width: int = 0) -> Console:
    """least_width: of tables where output is no terminal, and the width is ours to choose."""
    made = Console(stderr=stderr, highlight=False, soft_wrap=True, emoji=False)
    if least_width and not made.is_terminal:
        made = Console(stderr=stderr, highlight=False, soft_wrap=True, emoji=False, width=max(least_width, made.width))
    return made
