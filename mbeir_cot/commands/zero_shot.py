"""`mbeir-cot zero-shot …`: the suite of zero-shot tasks as it lies on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mbeir_cot import printing
from mbeir_cot.options import ImageRoots

app = typer.Typer(no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output instead of tables.")]


@app.command("list")
def list_datasets(
    root: Annotated[
        Path | None, typer.Argument(metavar="[ROOT]", help="Tell also which annotation files are found below this directory.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Says what each of the thirteen columns is: question, metric, source, licence, files."""
    import json

    from trainer.zero_shot.suite import DATASETS

    rows = [
        {
            "name": one.name,
            "columns": dict(one.columns),
            "about": one.about,
            "source": one.source,
            "licence": one.licence,
            "files": list(one.files),
            **({} if root is None else {"found": list(one.found(root))}),
        }
        for one in DATASETS
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for one in DATASETS:
        typer.echo(f"{one.name}: {', '.join(f'{column} ({metric})' for column, metric in one.columns.items())}")
        typer.echo(f"  {one.about}\n  source: {one.source}\n  licence: {one.licence}")
        found = None if root is None else one.found(root)
        for name in one.files:
            typer.echo(f"  file: {name}" + ("" if found is None else " (found)" if name in found else " (not there)"))


@app.command()
def check(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="The directory with the data sets' folders in it.")],
    as_json: Json = False,
    images: Annotated[bool, typer.Option("--images/--no-images", help="Look whether each image file is there.")] = True,
    image_roots: ImageRoots = None,
) -> None:
    """Reads what lies below ROOT: queries, candidates and missing images of each task.

    Exits with 1 where a task cannot be read whole, images are missing, or nothing is found; data sets that are not there and
    counts that differ from the published ones are told and do not count.
    """
    from rich.markup import escape
    from rich.table import Table

    from trainer.zero_shot.check import check as run_check
    from trainer.zero_shot.suite import DATASETS

    report = run_check(DATASETS, root, images=images, image_roots=image_roots or ())
    if as_json:
        typer.echo(report.model_dump_json(indent=1))
    else:
        console = printing.console(least_width=100)
        table = Table("task", "column", "queries", "candidates", "images", "missing", box=None)
        for one in report.tasks:
            looked = (f"{one.images:,}", f"{one.missing:,}") if images else ("", "")
            table.add_row(escape(one.task), escape(one.column), f"{one.queries:,}", f"{one.candidates:,}", *looked)
        console.print(table)
        for one in report.tasks:
            for problem in one.problems:
                console.print(f"[bold red]error:[/] {escape(f'{one.task}: {problem}')}")
            for note in one.notes:
                console.print(f"note: {escape(f'{one.task}: {note}')}")
        for name, files in report.absent.items():
            console.print(f"not there: {escape(name + ': ' + ', '.join(files))}")
        if not report.tasks:
            console.print("nothing found: `mbeir-cot zero-shot list` names the files and where they come from")
    raise typer.Exit(0 if report.ok else 1)


@app.command("convert-cc-neg")
def convert_cc_neg(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="The published ccneg_preprocessed.pt.")],
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="The directory with the data sets' folders in it.")],
) -> None:
    """Writes CC-Neg's evaluated entries as text, from a file that is loaded as plain values only, never unpickled.

    Run it again for another file: the output is replaced whole.
    """
    from trainer.zero_shot.cc_neg import CONVERTED, convert

    number = convert(source, root)
    typer.echo(f"{number:,} entries in {root / CONVERTED}")
