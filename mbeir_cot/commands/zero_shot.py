"""`mbeir-cot zero-shot …` and `mbeir-cot contamination`: the suite of zero-shot tasks, its files and its scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mbeir_cot import printing
from mbeir_cot.commands.train import Run, Set, run_settings
from mbeir_cot.options import ImageRoots
from pipeline.meter import quiet_progress

if TYPE_CHECKING:
    from trainer.zero_shot.table import Column, Means

app = typer.Typer(no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output instead of tables.")]


@app.command("list")
def list_datasets(
    root: Annotated[
        Path | None, typer.Argument(metavar="[ROOT]", help="Tell also which annotation files are found below this directory.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Describes each of the thirteen columns: question, metric, source, licence, files."""
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
    """Reads the data sets below ROOT: queries, candidates and missing images of each task.

    Exits with 1 if a task cannot be read completely, images are missing, or nothing is found. Absent data sets and counts that
    differ from the published ones are only reported.
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


@app.command("run")
def run_suite(
    run: Run,
    root: Annotated[Path, typer.Option(help="The directory with the data sets' folders in it.")],
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", help="A data set or a task of one; may be repeated [default: all that is there]."),
    ] = None,
    variant: Annotated[str, typer.Option(help="trace, direct or always-reason.")] = "trace",
    route: Annotated[str, typer.Option(help="adaptive: as the embedder decides; bypass or reason: every query.")] = "adaptive",
    out: Annotated[Path | None, typer.Option(help="Gets vectors and scores [default: RUN/zero-shot/VARIANT-ROUTE].")] = None,
    seen: Annotated[bool, typer.Option("--seen/--no-seen", help="Tell apart what the run's training data have shown.")] = True,
    near: Annotated[
        bool, typer.Option("--near", help="Mark near-duplicate pictures too: opens every training picture.")
    ] = False,
    overrides: Set = None,
    image_roots: ImageRoots = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Embeds and scores the data sets below ROOT: each part, macro and micro means, for all, seen and unseen queries.

    After an interruption, run it again: finished tasks are kept. Unreadable images are counted; their queries are misses.
    OUT/results.json has every metric of every part, OUT/tasks/NAME/values.npz each query's value.
    """
    from schemas.errors import ConfigError
    from trainer.model.location import is_checkpoint, locate, model_directory
    from trainer.zero_shot.evaluate import evaluate_suite
    from trainer.zero_shot.table import suite_directory

    run = locate(run)
    if is_checkpoint(run) and out is None:
        raise ConfigError(f"{run} is a model and no place for its scores", "name a directory with --out")
    # of a model alone nothing is read from M-BEIR here but what --seen asks for
    given = [*(overrides or ()), *([f"data.mbeir={root}"] if is_checkpoint(run) and not _sets_mbeir(overrides) else [])]
    settings = run_settings(run, given, None, None)
    model = model_directory(settings, run, variant)
    place = out or suite_directory(run if run.is_dir() else settings.out, variant, route)
    with quiet_progress(quiet):
        results = evaluate_suite(
            settings,
            model,
            place,
            root=root,
            variant=variant,
            route=route,
            tasks=tasks or (),
            image_roots=image_roots or (),
            seen=seen,
            near=near,
        )
    typer.echo(results.model_dump_json(indent=1)) if as_json else _show(results.columns, place)


def _sets_mbeir(overrides: list[str] | None) -> bool:
    return any(one.split("=")[0].strip() == "data.mbeir" for one in overrides or ())


def _show(table: list[Column], place: Path) -> None:
    from rich.markup import escape
    from rich.table import Table

    groups = [name for name in ("all", "seen", "unseen") if any(name in one.groups for one in table)]
    shown = Table("column", "metric", *(f"{escape(name)} (n)" for name in groups), "think rate", "unreadable", box=None)
    for one in table:
        count = one.groups["all"].queries - one.unreadable_queries
        parts = one.groups["all"].parts
        unread = f"{one.unreadable_queries:,} + {one.unreadable_candidates:,}"
        rows = [(f"{name}, macro" if len(parts) > 1 else name, "macro") for name in [one.column]]
        rows += [("  micro", "micro")] if len(parts) > 1 else []
        for title, mean in rows:
            cells = [_mean(one.groups.get(group), mean, one.metric) for group in groups]
            first = title.startswith(one.column)
            costs = (f"{one.reasoned / max(1, count):.0%}", unread) if first else ("", "")
            shown.add_row(escape(title), one.metric if first else "", *cells, *costs)
        for part in parts if len(parts) > 1 else ():
            cells = [
                f"{100 * means.parts[part][one.metric]:.1f}" if (means := one.groups.get(group)) and part in means.parts else ""
                for group in groups
            ]
            shown.add_row(f"  {escape(part)}", "", *cells, "", "")
    console = printing.console(least_width=110)
    console.print(shown)
    console.print("in per cent; unreadable: queries, which are misses + candidates, which cannot be found")
    for one in table:
        if (tied := one.groups["all"].micro.get("tied", 0)) > 0:
            console.print(
                f"note: {escape(one.column)}: for {tied:.1%} of the queries another scores as much as the target, which wins"
            )
    console.print(escape(str(place / "results.json")))


def _mean(means: Means | None, which: str, metric: str) -> str:
    if means is None:
        return ""
    value = (means.macro if which == "macro" else means.micro)[metric]
    return f"{100 * value:.1f} ({means.queries:,})"


def contamination(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="A dataset of `mbeir-cot build`: its directory, or ORG/NAME.")
    ],
    task: Annotated[str, typer.Argument(metavar="TASK", help="A data set or a task of the zero-shot suite, such as mt-fiq.")],
    root: Annotated[Path, typer.Option(help="The directory with the suite's data sets' folders in it.")],
    mbeir: Annotated[Path, typer.Option(help="The M-BEIR root of the dataset: its candidates are read.")],
    hold_out: Annotated[list[str] | None, typer.Option(help="A dataset-task that is not trained on; may be repeated.")] = None,
    near: Annotated[bool, typer.Option("--near", help="Near-duplicate pictures too: opens every picture of both.")] = False,
    lists: Annotated[Path | None, typer.Option(help="Write each query's marks to this file, as JSON lines.")] = None,
    image_roots: ImageRoots = None,
    as_json: Json = False,
) -> None:
    """Lists the queries of a zero-shot task that training on DATASET has seen: the same pair, image or text."""
    import json

    from rich.table import Table

    from pipeline.files.durable import replace_text
    from schemas.training import DataSettings, ModelSettings, TrainConfig
    from trainer.zero_shot.contamination import Marks, TrainingIndex
    from trainer.zero_shot.inputs import SuiteStore
    from trainer.zero_shot.run import wanted
    from trainer.zero_shot.suite import DATASETS

    data = DataSettings(dataset=dataset, mbeir=mbeir, hold_out=tuple(hold_out or ()), image_roots=tuple(image_roots or ()))
    config = TrainConfig(model=ModelSettings(base=""), data=data, out=Path())
    chosen = wanted([one for each in DATASETS for one in each.open(root)], [task])
    index = TrainingIndex.of(config, near=near)
    store = SuiteStore(root, image_roots or ()) if near else None
    marked = {one.name: index.marks(one, store) for one in chosen}
    names = [*Marks._fields, "seen"]
    counts = {
        name: {"queries": len(marks), **{mark: sum(getattr(one, mark) for one in marks.values()) for mark in names}}
        for name, marks in marked.items()
    }
    if lists is not None:
        lines = [
            json.dumps({"task": name, "query": identifier, **one._asdict()})
            for name, marks in marked.items()
            for identifier, one in marks.items()
        ]
        replace_text(lists, "".join(f"{line}\n" for line in lines))
    if as_json:
        typer.echo(json.dumps(counts, indent=1))
        return
    shown = Table("task", "queries", "same pair", "same image", "same text", "near", "any", box=None)
    for name, count in counts.items():
        total = max(1, count["queries"])
        shown.add_row(name, f"{total:,}", *(f"{count[mark]:,} ({count[mark] / total:.0%})" for mark in names))
    printing.console(least_width=100).print(shown)
