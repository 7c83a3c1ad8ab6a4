"""`mbeir-cot zero-shot …` and `mbeir-cot contamination`: the suite of zero-shot tasks, its files and its scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from mbeir_cot import printing
from mbeir_cot.commands.train import Run, Set, run_settings
from mbeir_cot.options import ImageRoots, choose
from pipeline.progress_meter import quiet_progress

if TYPE_CHECKING:
    from trainer.zero_shot.contamination import PicturesRead

app = typer.Typer(no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output instead of tables.")]


@app.command("list")
def list_datasets(
    root: Annotated[
        Path | None, typer.Argument(metavar="[ROOT]", help="Also say which annotation files exist below this directory.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Describes each of the thirteen columns: question, metric, source, licence, files."""
    import json

    from trainer.zero_shot.suite import DATASETS

    found = {dataset.name: dataset.found(root) for dataset in DATASETS} if root is not None else {}
    if as_json:
        rows = [
            {
                "name": dataset.name,
                "columns": dict(dataset.columns),
                "about": dataset.about,
                "source": dataset.source,
                "licence": dataset.licence,
                "files": list(dataset.files),
                **({} if root is None else {"found": list(found[dataset.name])}),
            }
            for dataset in DATASETS
        ]
        typer.echo(json.dumps(rows, indent=1))
        return
    for dataset in DATASETS:
        typer.echo(f"{dataset.name}: {', '.join(f'{column} ({metric})' for column, metric in dataset.columns.items())}")
        typer.echo(f"  {dataset.about}\n  source: {dataset.source}\n  licence: {dataset.licence}")
        for name in dataset.files:
            state = "" if root is None else " (found)" if name in found[dataset.name] else " (not there)"
            typer.echo(f"  file: {name}{state}")


@app.command()
def check(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="The directory with the data sets' folders in it.")],
    as_json: Json = False,
    images: Annotated[bool, typer.Option("--images/--no-images", help="Check whether each image file exists.")] = True,
    image_roots: ImageRoots = None,
) -> None:
    """Reads the data sets below ROOT: queries, candidates and missing images of each task.

    Exits with 1 if a task cannot be read completely, images are missing, or nothing is found. Absent data sets and counts that
    differ from the published ones are only reported.
    """
    from trainer.zero_shot.check import check as run_check
    from trainer.zero_shot.suite import DATASETS
    from trainer.zero_shot.tables import render_check

    result = run_check(DATASETS, root, images=images, image_roots=image_roots or ())
    if as_json:
        typer.echo(result.model_dump_json(indent=1))
    else:
        printing.console(least_width=100).print(render_check(result, images=images))
    raise typer.Exit(0 if result.ok else 1)


@app.command("convert-cc-neg")
def convert_cc_neg(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="The published ccneg_preprocessed.pt.")],
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="The directory with the data sets' folders in it.")],
) -> None:
    """Writes CC-Neg's evaluated entries as text. The published file is loaded as plain values only, never unpickled.

    Running it again replaces the output.
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
        typer.Option("--tasks", help="A data set or one of its tasks; may be repeated [default: all that exist]."),
    ] = None,
    variant: Annotated[str, typer.Option(help="trace, direct or always-reason.")] = "trace",
    route: Annotated[str, typer.Option(help="adaptive: as the embedder decides; bypass or reason: every query.")] = "adaptive",
    out: Annotated[
        Path | None, typer.Option(help="Directory for vectors and scores [default: RUN/zero-shot/VARIANT-ROUTE].")
    ] = None,
    seen: Annotated[
        bool, typer.Option("--seen/--no-seen", help="Report queries apart that the run's training data has shown.")
    ] = True,
    near: Annotated[
        bool, typer.Option("--near", help="Also mark near-duplicate pictures: opens every training picture.")
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
    from trainer.zero_shot.evaluate_suite import evaluate_suite
    from trainer.zero_shot.results import results_file, suite_directory
    from trainer.zero_shot.run import ROUTES
    from trainer.zero_shot.tables import render_columns

    choose("--route", route, tuple(ROUTES))
    run = locate(run)
    if is_checkpoint(run) and out is None:
        raise ConfigError(f"{run} is a model, and no directory for its scores is given", "name one with --out")
    # a model alone needs M-BEIR only for what --seen reads
    given = [*(overrides or ()), *([f"data.mbeir={root}"] if is_checkpoint(run) and not _sets_mbeir(overrides) else [])]
    settings = run_settings(run, given, None, image_roots)
    place = out or suite_directory(run if run.is_dir() else settings.out, variant, route)
    with quiet_progress(quiet):
        results = evaluate_suite(
            settings,
            model_directory(settings, run, variant),
            root=root,
            out=place,
            names=tasks or (),
            route=route,
            variant=variant,
            seen=seen,
            near=near,
            image_roots=image_roots or (),
        )
    if as_json:
        typer.echo(results_file(place).read_text(encoding="utf-8"), nl=False)
        return
    console = printing.console(least_width=110)
    console.print(render_columns(results.columns))
    _notice_unread(results.pictures)
    console.print(escape(str(results_file(place))))


def _notice_unread(read: Mapping[str, PicturesRead]) -> None:
    from trainer.zero_shot.contamination import describe_unread

    for line in describe_unread(read):
        printing.console(least_width=110).print(f"[yellow]{escape(line)}[/]")


def _sets_mbeir(overrides: list[str] | None) -> bool:
    return any(override.split("=")[0].strip() == "data.mbeir" for override in overrides or ())


def contamination(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="A dataset of `mbeir-cot build`: its directory, or ORG/NAME.")
    ],
    task: Annotated[str, typer.Argument(metavar="TASK", help="A data set or a task of the zero-shot suite, such as mt-fiq.")],
    root: Annotated[Path, typer.Option(help="The directory with the suite's data sets' folders in it.")],
    mbeir: Annotated[Path, typer.Option(help="The dataset's M-BEIR root, for its candidates.")],
    hold_out: Annotated[
        list[str] | None, typer.Option(help="A dataset-task that training leaves out; may be repeated.")
    ] = None,
    near: Annotated[
        bool, typer.Option("--near", help="Also mark near-duplicate pictures: opens every picture of both.")
    ] = False,
    lists: Annotated[Path | None, typer.Option(help="Write each query's marks to this file, as JSON lines.")] = None,
    image_roots: ImageRoots = None,
    as_json: Json = False,
) -> None:
    """Lists the queries of a zero-shot task that training on DATASET has seen: the same pair, image or text."""
    import json

    from schemas.training import DataSettings, ModelSettings, TrainConfig
    from trainer.zero_shot.contamination import TrainingIndex, count_marks, write_marks
    from trainer.zero_shot.evaluate_suite import choose_tasks
    from trainer.zero_shot.inputs import SuiteStore
    from trainer.zero_shot.tables import render_contamination

    data = DataSettings(dataset=dataset, mbeir=mbeir, hold_out=tuple(hold_out or ()), image_roots=tuple(image_roots or ()))
    config = TrainConfig(model=ModelSettings(base=""), data=data, out=Path())
    tasks = choose_tasks(root, [task])
    index = TrainingIndex.of(config, near=near)
    store = SuiteStore(root, image_roots or ()) if near else None
    marked = {each.name: index.marks(each, store) for each in tasks}
    if lists is not None:
        write_marks(lists, marked)
    counts = count_marks(marked, index.read)
    if as_json:
        typer.echo(json.dumps(counts, indent=1))
    else:
        printing.console(least_width=100).print(render_contamination(counts))
        _notice_unread(index.read)
