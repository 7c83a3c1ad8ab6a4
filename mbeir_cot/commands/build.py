"""`mbeir-cot build`, and the commands that preview, estimate and inspect builds."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mbeir_cot import printing
from mbeir_cot.options import ImageRoots
from pipeline.progress_meter import quiet_progress

if TYPE_CHECKING:
    from schemas.config import BuildConfig
    from schemas.manifest import Manifest

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file such as configs/pocket.yaml.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: key.sub=value. May be repeated.")]
Out = Annotated[Path | None, typer.Option(help="The build's directory [default: the config's `out`].")]
Dir = Annotated[Path, typer.Argument(metavar="DIR", help="A build's directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

_NARROWEST = 112
"""Width of tables if the output is not a terminal."""

console = printing.console(least_width=_NARROWEST)


class Kind(StrEnum):
    """What `build --accept` counts by."""

    ALL = "all"
    DATASET_TASK = "dataset-task"


def _settings(
    config: Path,
    overrides: list[str] | None,
    out: Path | None,
    limit: int | None = None,
    *,
    image_roots: list[Path] | None = None,
) -> BuildConfig:
    from pipeline.config import load_config
    from schemas.config import BuildConfig

    given = list(overrides or ())
    if out is not None:
        given.append(f"out={out}")
    if limit is not None:
        given.append(f"input.limit={limit}")
    return load_config(config, BuildConfig, tuple(given), image_roots=image_roots or ())


def build(
    config: Config,
    out: Out = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Build only this many queries, sampled evenly.")] = None,
    accept: Annotated[int | None, typer.Option(min=1, help="Ask until there are so many records, or the input ends.")] = None,
    per: Annotated[Kind | None, typer.Option(help="With --accept: so many of each [default: all].")] = None,
    overrides: Set = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Send permanently failed requests again.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Publish even a dataset that keeps much less.")] = False,
    image_roots: ImageRoots = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Builds the dataset: assess, route, reason, screen, verify, write.

    Run it again after any interruption: no request that has an answer is sent again. With other thresholds, screens or routes
    it builds another dataset from the same answers. DIR/dataset is replaced only by a complete dataset that keeps about as many
    records and traces (publish.least_share), or with --replace.
    """
    from pipeline.build import build as run
    from schemas.errors import BuildStopped

    given = [*(overrides or ()), *(["ledger.retry_failed=true"] if retry_failed else [])]
    given += [f"accept.records={accept}"] if accept is not None else []
    given += [f"accept.per={per.value}"] if per is not None else []
    settings = _settings(config, given, out, limit, image_roots=image_roots)
    try:
        with quiet_progress(quiet):
            manifest, done = run(settings, replace=replace)
    except BuildStopped as stopped:
        printing.console(stderr=True).print(escape(f"{stopped.problem}; {stopped.remedy}"))
        raise typer.Exit(130) from None
    _print_summary(manifest, settings.out, done)


def reroute(
    config: Config,
    threshold: Annotated[float, typer.Option(min=0, max=1)],
    out: Out = None,
    overrides: Set = None,
    replace: Annotated[bool, typer.Option("--replace", help="Publish even a dataset that keeps much less.")] = False,
    image_roots: ImageRoots = None,
) -> None:
    """Builds again with another threshold on P(complex). Answers in the ledger are reused. A threshold by which much fewer
    queries reason needs --replace."""
    given = [*(overrides or ()), f"route.threshold={threshold}"]
    build(config, out=out, overrides=given, replace=replace, image_roots=image_roots)


def stats(directory: Dir, as_json: Json = False) -> None:
    """Shows what a finished dataset contains: counts by dataset-task, route and reason."""
    manifest = _manifest(directory)
    if as_json:
        typer.echo(manifest.model_dump_json(indent=1))
        return
    from pipeline.report.terminal import render_manifest

    console.print(render_manifest(manifest))


def status(directory: Dir, as_json: Json = False) -> None:
    """Shows the progress of a running, stopped or finished build."""
    from pipeline.annotate.build_progress import BuildProgress, facts
    from pipeline.files.locks import is_held
    from schemas.errors import InputError
    from schemas.os_errors import refused_by_system

    file = directory / "work" / "progress.json"
    try:
        progress = BuildProgress.model_validate_json(file.read_bytes())
    except (OSError, ValueError) as error:
        if (refused := refused_by_system(error)) is not None:
            raise InputError(f"{file} cannot be read: {refused.cause}", refused.remedy) from error
        raise InputError(f"there is no build in {directory} ({file} cannot be read)", "name a build's directory") from error
    running = progress.state not in ("finished", "stopped", "failed")
    if running and not is_held(directory):
        progress = progress.model_copy(update={"state": "killed", "message": "run the same command again to continue"})
    if as_json:
        typer.echo(progress.model_dump_json(indent=1))
        return
    console.print(f"[bold]{escape(progress.state)}[/]  {escape(progress.message)}")
    table = Table.grid(padding=(0, 2))
    for label, value in facts(progress):
        table.add_row(f"[dim]{escape(label)}[/]", escape(value))
    console.print(table)


def preview(
    config: Config,
    count: Annotated[int, typer.Option("-n", min=1, help="Queries.")] = 3,
    overrides: Set = None,
    out: Out = None,
    image_roots: ImageRoots = None,
) -> None:
    """Annotates a few queries and shows every step: images, prompts, answers, the result of each screen. Writes nothing."""
    from mbeir_cot.commands.teacher import told
    from pipeline.annotate.preview import annotate_queries
    from pipeline.report.terminal import render_annotation

    settings = _settings(config, overrides, out, count, image_roots=image_roots)
    with told() as tell:
        annotations = annotate_queries(settings, limit=count, tell=tell)
    for annotation in annotations:
        console.print(render_annotation(annotation, settings))


def estimate(
    config: Config,
    sample: Annotated[int, typer.Option(min=10, help="Queries to annotate.")] = 100,
    overrides: Set = None,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs behind the endpoints, for GPU-hours.")] = 0,
    as_json: Json = False,
    image_roots: ImageRoots = None,
) -> None:
    """Annotates a small sample and predicts requests, tokens, time and GPU-hours of the whole build."""
    from mbeir_cot.commands.teacher import told
    from pipeline.annotate.estimate import estimate as run
    from pipeline.serving.hosted import hosted_pair

    settings = _settings(config, overrides, None, image_roots=image_roots)
    with told() as tell, hosted_pair(settings, tell=tell) as endpoints:
        predicted = asyncio.run(run(settings, endpoints, sample, gpus))
    if as_json:
        typer.echo(predicted.model_dump_json(indent=1))
        return
    table = Table("", "of the sample", "of the whole", "likely range")
    for row in predicted.rows:
        table.add_row(*map(escape, (row.what, row.sample, row.whole, row.spread)))
    console.print(table)
    console.print(
        f"From {predicted.sample:,} of {predicted.queries:,} queries in {predicted.seconds:.0f} s "
        f"at {predicted.in_flight:,} in flight. "
        "Time scales with the rate of this sample on these servers; a short sample underestimates full servers."
    )


def _manifest(directory: Path) -> Manifest:
    from pipeline.files.state import read_model
    from schemas.errors import InputError
    from schemas.manifest import Manifest

    for place in (directory / "dataset", directory):
        if (place / "manifest.json").is_file():
            return read_model(place / "manifest.json", Manifest, "build the dataset again: nothing is asked twice")
    raise InputError(f"{directory} contains no finished dataset", "`mbeir-cot status DIR` tells how far a build is")


def _print_summary(manifest: Manifest, out: Path, done: bool) -> None:
    from pipeline.report.terminal import render_manifest

    console.print(render_manifest(manifest))
    reasoning = sum(task.reasoning for task in manifest.tasks)
    bypass = sum(task.bypass for task in manifest.tasks)
    console.print(
        f"{manifest.records:,} records of {manifest.queries:,} queries: {reasoning:,} reason, {bypass:,} bypass; "
        f"{manifest.rejections:,} were rejected, each with its reason."
    )
    if manifest.left:
        console.print(f"{manifest.left:,} queries of the input were not needed for that: they were left.")
    for kind, records in manifest.short.items():
        console.print(f"[yellow]{escape(kind)} has {records:,} records[/]: the input ended before there were enough.")
    if manifest.malformed_lines:
        console.print(f"{manifest.malformed_lines:,} malformed lines are in {escape(str(out / 'work' / 'malformed.jsonl'))}.")
    if manifest.owed:
        console.print(f"[yellow]{manifest.owed:,} queries got no answer[/]: run the same command again to send them again.")
    dataset = escape(str(out / "dataset"))
    console.print(f'{"Wrote" if done else "Nothing has changed since"} {dataset}: load_dataset("{dataset}")')
