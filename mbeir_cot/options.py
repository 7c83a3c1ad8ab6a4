"""Options shared by several commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from schemas.errors import ConfigError

Name = TypeVar("Name", bound=str)

ImageRoots = Annotated[
    list[Path] | None,
    typer.Option(
        "--image-root",
        exists=True,
        file_okay=False,
        resolve_path=True,
        help="A further directory that links below the M-BEIR root may point into. May be repeated.",
    ),
]


def choose(option: str, given: str, names: Sequence[Name]) -> Name:
    """Returns `given` if it is one of the names. Raises ConfigError, naming the option, otherwise."""
    for name in names:
        if name == given:
            return name
    raise ConfigError(f"{option} {given}: unknown", f"{', '.join(names[:-1])} or {names[-1]}")
