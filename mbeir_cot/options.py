"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ImageRoots = Annotated[
    list[Path] | None,
    typer.Option(
        "--image-root",
        exists=True,
        file_okay=False,
        resolve_path=True,
        help="A further directory that links below the M-BEIR root may lead into. May be repeated.",
    ),
]
