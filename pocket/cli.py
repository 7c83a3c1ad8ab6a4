"""`mbeir-cot pocket …`: the embedded default."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def pocket() -> None:
    pass


@app.command()
def world(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Gets mbeir/ (the benchmark) and truth/ (for measuring only).")],
    seed: Annotated[int, typer.Option(help="Decides every byte, together with --queries.")] = 7,
    queries: Annotated[
        int, typer.Option(min=64, max=4000, help="Training queries, about; test and pools keep their size.")
    ] = 2000,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it holds something else.")] = False,
) -> None:
    """Writes a SYNTHETIC miniature M-BEIR: same layout, 16 dataset-tasks, drawn pictures, invented entities."""
    from pocket.world.write import write_world

    began = time.monotonic()
    if write_world(out, seed=seed, train_queries=queries, force=force):
        typer.echo(f"wrote a synthetic world to {out} in {time.monotonic() - began:.1f} s")
    else:
        typer.echo(f"{out} is up to date")
    typer.echo(f"look at it: mbeir-cot mbeir stats {out / 'mbeir'}")


@app.command()
def sheet(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="An M-BEIR root, such as OUT/mbeir.")],
    picture: Annotated[Path, typer.Argument(metavar="PNG", help="The picture to write.")],
    skip: Annotated[int, typer.Option(min=0, help="Which query of each test file.")] = 1,
) -> None:
    """Draws one query of each dataset-task with its positive, to look at."""
    from pocket.world.sheet import draw_sheet

    draw_sheet(root, skip=skip).save(picture)
    typer.echo(f"wrote {picture}")


@app.command()
def models(
    out: Annotated[Path | None, typer.Option(help="Where to write [default: into the package, pocket/models].")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Trains the pocket teacher and the pocket base from scratch. Long on CPU: training.jsonl beside them shows the rate."""
    from pocket.models import MODELS, Role, train, train_stem

    where = out or MODELS
    train_stem(where, device=device)
    roles: tuple[Role, ...] = ("teacher", "base")
    for role in roles:
        typer.echo(f"wrote {train(role, where, device=device)}")
