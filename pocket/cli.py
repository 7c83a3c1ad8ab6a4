"""`mbeir-cot pocket …`: the embedded default."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def pocket() -> None:
    pass
