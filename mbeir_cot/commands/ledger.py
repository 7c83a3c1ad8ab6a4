"""`mbeir-cot ledger …`: the log of all teacher answers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.markup import escape
from rich.table import Table

from mbeir_cot import printing

app = typer.Typer(no_args_is_help=True)

Place = Annotated[str, typer.Argument(metavar="LEDGER", help="A build's directory, a ledger's, or its URI.")]
Journals = Annotated[Path | None, typer.Option(help="Directory of the journals, for a ledger that is not local.")]

console = printing.console()


@app.command()
def stats(place: Place, journals: Journals = None, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Shows answers, failures, tokens and bytes by kind of request."""
    from pipeline.ledger.maintenance import ledger_stats

    counts = ledger_stats(_location(place), journals)
    if as_json:
        typer.echo(orjson.dumps(asdict(counts), option=orjson.OPT_INDENT_2).decode())
        return
    table = Table("kind", "answers", "failures", "tokens in", "tokens out", "mean latency")
    for name, kind in counts.kinds.items():
        failures = ", ".join(f"{outcome} {count:,}" for outcome, count in kind.failures.items()) or "0"
        mean = f"{kind.latency_s / kind.answers:.3f} s" if kind.answers else "-"
        table.add_row(
            escape(name), f"{kind.answers:,}", escape(failures), f"{kind.prompt_tokens:,}", f"{kind.completion_tokens:,}", mean
        )
    console.print(table)
    each = f", {counts.bytes / counts.answers:.0f} per answer" if counts.answers else ""
    console.print(
        f"{counts.answers:,} answers ({counts.distinct:,} distinct requests) in {counts.segments:,} segments, "
        f"{counts.bytes:,} bytes{each}; {counts.journals:,} journals not yet sealed"
    )


@app.command()
def verify(place: Place, journals: Journals = None) -> None:
    """Reads every byte and lists what is damaged. Exits with 1 if anything is."""
    from pipeline.ledger.maintenance import verify_ledger

    problems = verify_ledger(_location(place), journals)
    for problem in problems:
        console.print(f"[red]damaged[/] {escape(problem)}")
    if not problems:
        console.print("undamaged")
    raise typer.Exit(1 if problems else 0)


@app.command()
def compact(place: Place) -> None:
    """Merges many small segments into a few. Do not run it during a build."""
    from pipeline.ledger.maintenance import compact as run

    before, after = run(_location(place))
    console.print(f"{before:,} segments before, {after:,} now")


def _location(place: str) -> str:
    from schemas.errors import InputError

    if "://" in place:
        return place
    path = Path(place)
    if (path / "ledger").is_dir():
        return str(path / "ledger")
    if not path.is_dir():
        raise InputError(f"no ledger at {place}", "name a build's directory or a ledger's")
    return str(path)
