"""Runs the stages in order and prints the outcome of each. Exits with 1 if one has failed."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from bench.rehearse.commands import StageFailed
from bench.rehearse.stages import STAGES, Rehearsal, Stage, StageSkipped
from schemas.errors import CotError

DIRECTORY = Path("build/rehearsal")
console = Console(highlight=False, soft_wrap=True, width=max(140, Console().width))


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    only: Annotated[list[str] | None, typer.Option(help="Only this stage and those it needs. May be repeated.")] = None,
    directory: Annotated[Path, typer.Option(help="Where everything is written.")] = DIRECTORY,
    keep: Annotated[bool, typer.Option("--keep", help="Keep checkpoints, data and runs afterwards.")] = False,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="With --only: reuse the results of needed stages that --keep has left.")
    ] = False,
) -> None:
    """Rehearses the GPU configs on random checkpoints with real layouts."""
    disable_progress_bar()
    known = {stage.name: stage for stage in STAGES}
    unknown = [name for name in only or () if name not in known]
    if unknown:
        console.print(f"no stage {', '.join(unknown)}; the stages are {', '.join(known)}")
        raise typer.Exit(2)
    chosen = [stage for stage in STAGES if not only or stage.name in (only if reuse else _with_needs(only, known))]
    rehearsal = Rehearsal(directory.resolve(), device, heads=1 if device == "cpu" else 2)
    outcomes: dict[str, tuple[str, float, str]] = {}
    for stage in chosen:
        console.print(f"[bold]{stage.name}[/]  {stage.what}")
        outcome, seconds, said = _run(stage, rehearsal, outcomes)
        outcomes[stage.name] = (outcome, seconds, said)
        console.print(f"  {outcome} in {seconds:.0f} s  {escape(said)}")
    _close(chosen, outcomes, device)
    failures = [name for name, (outcome, *_) in outcomes.items() if outcome == "failed"]
    if failures:
        console.print(f"kept files: {rehearsal.directory}")
        raise typer.Exit(1)
    if not keep:
        shutil.rmtree(rehearsal.directory, ignore_errors=True)


def _run(stage: Stage, rehearsal: Rehearsal, before: dict[str, tuple[str, float, str]]) -> tuple[str, float, str]:
    missing = [name for name in stage.needs if name in before and before[name][0] != "ok"]
    if missing:
        return "skipped", 0.0, f"needs {', '.join(missing)}"
    began = time.monotonic()
    try:
        said = stage.run(rehearsal)
    except StageSkipped as skipped:
        return "skipped", time.monotonic() - began, str(skipped)
    except (StageFailed, CotError) as error:
        return "failed", time.monotonic() - began, str(error)
    return "ok", time.monotonic() - began, said


def _close(stages: list[Stage], outcomes: dict[str, tuple[str, float, str]], device: str) -> None:
    table = Table("stage", "what", "outcome", "seconds", title=f"rehearsal on {device}")
    for stage in stages:
        outcome, seconds, _ = outcomes[stage.name]
        table.add_row(stage.name, stage.what, outcome, f"{seconds:.0f}")
    table.add_section()
    table.add_row("", "", "", f"{sum(seconds for _, seconds, _ in outcomes.values()):.0f}")
    console.print(table)


def _with_needs(names: list[str], known: dict[str, Stage]) -> set[str]:
    found = set(names)
    while more := {need for name in found for need in known[name].needs} - found:
        found |= more
    return found


if __name__ == "__main__":
    typer.run(main)
