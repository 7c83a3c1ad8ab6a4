"""`mbeir-cot pocket …`: the embedded default."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from mbeir_cot.options import ImageRoots

app = typer.Typer(no_args_is_help=True)


@app.callback()
def pocket() -> None:
    pass


@app.command()
def world(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Directory for mbeir/ (the benchmark) and truth/ (for measurements only).")
    ],
    seed: Annotated[int, typer.Option(help="Decides every byte, together with --queries.")] = 7,
    queries: Annotated[
        int,
        typer.Option(
            min=64, max=100_000, help="Approximate number of training queries; test queries and pools keep their size."
        ),
    ] = 2000,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT even if it contains something else.")] = False,
) -> None:
    """Writes a SYNTHETIC miniature M-BEIR: same layout, 16 dataset-tasks, drawn pictures, invented entities."""
    from pocket.world.write import write_world

    began = time.monotonic()
    if write_world(out, seed=seed, train_queries=queries, force=force):
        typer.echo(f"wrote a synthetic world to {out} in {time.monotonic() - began:.1f} s")
    else:
        typer.echo(f"{out} is up to date")
    typer.echo(f"inspect it with: mbeir-cot mbeir stats {out / 'mbeir'}")


@app.command("zero-shot")
def zero_shot(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Directory for a folder per data set: a root for `zero-shot run`.")
    ],
    seed: Annotated[int, typer.Option(help="Decides every byte, together with --number.")] = 11,
    number: Annotated[int, typer.Option(min=4, max=200, help="Approximate number of queries per task.")] = 24,
    force: Annotated[bool, typer.Option("--force", help="Write into OUT even if it contains something else.")] = False,
) -> None:
    """Writes a SYNTHETIC miniature of the ten zero-shot data sets, each in its own format; no training query shows its
    content."""
    from pocket.world.suite.write import write_suite

    began = time.monotonic()
    if write_suite(out, seed=seed, number=number, force=force):
        typer.echo(f"wrote a synthetic suite to {out} in {time.monotonic() - began:.1f} s")
    else:
        typer.echo(f"{out} is up to date")
    typer.echo(f"check it with: mbeir-cot zero-shot check {out}")


@app.command()
def sheet(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="An M-BEIR root, such as OUT/mbeir.")],
    picture: Annotated[Path, typer.Argument(metavar="PNG", help="The picture to write.")],
    skip: Annotated[int, typer.Option(min=0, help="Which query of each test file.")] = 1,
    image_roots: ImageRoots = None,
) -> None:
    """Draws one query of each dataset-task with its positive."""
    from pocket.world.contact_sheet import draw_sheet

    draw_sheet(root, skip=skip, image_roots=image_roots or ()).save(picture)
    typer.echo(f"wrote {picture}")


@app.command()
def models(
    out: Annotated[
        Path | None, typer.Option(help="Directory to write to [default: pocket/checkpoints, in the package].")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Trains the pocket teacher and the pocket base from scratch. Slow on CPU; training.jsonl beside them shows the
    progress."""
    from pocket.training.train_models import MODELS, Role, train, train_stem

    where = out or MODELS
    train_stem(where, device=device)
    roles: tuple[Role, ...] = ("teacher", "base")
    for role in roles:
        typer.echo(f"wrote {train(role, where, device=device)}")


@app.command(name="long-course")
def long_course(
    role: Annotated[str, typer.Argument(help="teacher or base.")],
    out: Annotated[Path, typer.Option(help="Directory for a folder with the role's name.")],
    minutes: Annotated[float, typer.Option(min=0.1, help="Duration; the learning rate decays over this time.")] = 18,
    source: Annotated[Path | None, typer.Option(help="The checkpoint to continue from [default: the shipped one].")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda",
    workers: Annotated[int, typer.Option(min=1, help="Processes that generate lessons.")] = 7,
    batch: Annotated[int, typer.Option(min=1, help="Lessons per step.")] = 512,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    optimiser: Annotated[str | None, typer.Option(help="adamw or muon [default: the course's].")] = None,
    edits: Annotated[float, typer.Option(min=0, max=1, help="Share of lessons about changes to scenes.")] = 0,
) -> None:
    """Trains a pocket checkpoint further, on all skills at once. training.jsonl shows the losses."""
    from dataclasses import replace

    from pocket.training.train_models import EDITS, LONG, Role, Stressed, train_long

    checked: Role = "teacher" if role == "teacher" else "base"
    course = LONG[checked]
    kind = course.recipe.optimiser if optimiser is None else ("muon" if optimiser == "muon" else "adamw")
    recipe = replace(course.recipe, minutes=minutes, workers=workers, batch=batch, lr=lr, optimiser=kind)
    sample = Stressed(course.sample, EDITS[checked], edits) if edits else course.sample
    course = replace(course, sample=sample, recipe=recipe)
    written = train_long(checked, out, source=source, course=course, device=device)
    typer.echo(f"wrote {written}")
