"""`mbeir-cot build` and the commands that look at builds."""

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
from pipeline.meter import quiet_progress

if TYPE_CHECKING:
    from pipeline.annotate.annotation import Annotation, Attempt
    from prompts import Prompt
    from schemas.config import BuildConfig
    from schemas.manifest import Manifest

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file such as configs/pocket.yaml.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: key.sub=value. May be repeated.")]
Out = Annotated[Path | None, typer.Option(help="The build's directory [default: the config's `out`].")]
Dir = Annotated[Path, typer.Argument(metavar="DIR", help="A build's directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

_NARROWEST = 112
"""Tables need this much; where output is no terminal the width is ours to choose."""

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
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many queries, evenly drawn.")] = None,
    accept: Annotated[int | None, typer.Option(min=1, help="Ask until there are so many records, or the input ends.")] = None,
    per: Annotated[Kind | None, typer.Option(help="With --accept: so many of each [default: all].")] = None,
    overrides: Set = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask failed requests again.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Publish also what keeps much less than the old dataset.")] = False,
    image_roots: ImageRoots = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Builds the dataset: assess, route, reason, screen, verify, write.

    Run it again after any interruption: no request that has an answer is sent again. With other thresholds, screens or routes
    it builds another dataset from the same answers. DIR/dataset is replaced only by a complete dataset that keeps about as many
    records (publish.least_share).
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
    _summary(manifest, settings.out, done)


def reroute(
    config: Config,
    threshold: Annotated[float, typer.Option(min=0, max=1)],
    out: Out = None,
    overrides: Set = None,
    replace: Annotated[bool, typer.Option("--replace", help="Publish also what keeps much less than the old dataset.")] = False,
    image_roots: ImageRoots = None,
) -> None:
    """Builds again with another threshold on P(complex). Answers in the ledger are reused."""
    given = [*(overrides or ()), f"route.threshold={threshold}"]
    build(config, out=out, overrides=given, replace=replace, image_roots=image_roots)


def stats(directory: Dir, as_json: Json = False) -> None:
    """Shows what a finished dataset contains: counts by dataset-task, route and reason."""
    manifest = _manifest(directory)
    if as_json:
        typer.echo(manifest.model_dump_json(indent=1))
    else:
        _tables(manifest)


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
        raise InputError(f"no build was begun in {directory} ({file} cannot be read)", "name a build's directory") from error
    running = progress.state not in ("finished", "stopped", "failed")
    if running and not is_held(directory):
        progress = progress.model_copy(update={"state": "killed", "message": "run the same command again: it goes on"})
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

    settings = _settings(config, overrides, out, count, image_roots=image_roots)
    with told() as tell:
        found = annotate_queries(settings, limit=count, tell=tell)
    for annotation in found:
        _show(annotation, settings)


def estimate(
    config: Config,
    sample: Annotated[int, typer.Option(min=10, help="Queries to ask for real.")] = 100,
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
        found = asyncio.run(run(settings, endpoints, sample, gpus))
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
        return
    table = Table("", "of the sample", "of the whole", "likely range")
    for row in found.rows:
        table.add_row(*map(escape, (row.what, row.sample, row.whole, row.spread)))
    console.print(table)
    console.print(
        f"From {found.sample:,} of {found.queries:,} queries in {found.seconds:.0f} s at {found.in_flight:,} in flight. "
        "Time scales with the rate of this sample on these servers; a short sample underestimates full servers."
    )


def _manifest(directory: Path) -> Manifest:
    from schemas.errors import InputError
    from schemas.manifest import Manifest

    for place in (directory / "dataset", directory):
        if (place / "manifest.json").is_file():
            return Manifest.model_validate_json((place / "manifest.json").read_bytes())
    raise InputError(f"{directory} holds no finished dataset", "`mbeir-cot status DIR` tells how far a build is")


def _summary(manifest: Manifest, out: Path, done: bool) -> None:
    _tables(manifest)
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
        console.print(f"[yellow]{manifest.owed:,} queries got no answer[/]: run the same command again to ask them.")
    dataset = escape(str(out / "dataset"))
    console.print(f'{"Wrote" if done else "Nothing has changed since"} {dataset}: load_dataset("{dataset}")')


def _tables(manifest: Manifest) -> None:
    if manifest.synthetic:
        console.print("[bold]SYNTHETIC[/] (pocket world: invented queries and images)")
    left = ["left"] if manifest.left else []
    table = Table("dataset-task", "queries", "reasoning", "bypass", "rejected", "think rate", "kept", *left, "first reason")
    for number in range(1, 7 + len(left)):
        table.columns[number].justify = "right"
    for task in manifest.tasks:
        first = max(task.rejected.items(), key=lambda item: item[1], default=None)
        table.add_row(
            escape(f"{task.dataset}_task{task.task_id}"),
            f"{task.queries:,}",
            f"{task.reasoning:,}",
            f"{task.bypass:,}",
            f"{task.rejections:,}",
            f"{task.think_rate:.0%}" if task.think_rate is not None else "-",
            f"{task.kept:.1%}" if task.kept is not None else "-",
            *([f"{task.left:,}"] if left else []),
            f"{escape(first[0])} ({first[1]:,})" if first else "",
        )
    console.print(table)


def _show(annotation: Annotation, settings: BuildConfig) -> None:
    query = annotation.query
    console.rule(f"[bold]{escape(annotation.id)}[/]", align="left")
    console.print(f"[dim]instruction[/] {escape(annotation.instruction)}")
    if query.query_txt:
        console.print(f"[dim]text       [/] {escape(query.query_txt)}")
    if query.query_img_path:
        console.print(f"[dim]image      [/] {escape(str(settings.mbeir / query.query_img_path))}")
    if annotation.target is not None:
        image = str(settings.mbeir / annotation.target.img_path) if annotation.target.img_path else ""
        console.print(f"[dim]target     [/] {escape(annotation.target.txt or '')} {escape(image)}")
    if annotation.assessment is not None and annotation.assess_prompt is not None:
        _prompt("assess", annotation.assess_prompt)
        console.print(f"  P(complex) = {annotation.assessment:.3f}")
    if annotation.route is not None:
        console.print(f"[bold]route: {escape(annotation.route)}[/]")
    for number, attempt in enumerate(annotation.attempts, 1):
        _show_attempt(number, attempt, settings)
    if annotation.rejection is not None:
        cause = annotation.rejection
        console.print(f"[red]rejected at {escape(cause.stage)}: {escape(cause.reason)}[/] ({escape(cause.detail)})")
    else:
        console.print("[green]a record[/]")


def _show_attempt(number: int, attempt: Attempt, settings: BuildConfig) -> None:
    from pipeline.annotate.screens import screen_results

    _prompt(f"reason, attempt {number}", attempt.prompt)
    console.print(f"[dim]  raw answer ({attempt.answer.completion_tokens:,} tokens)[/]")
    console.print(escape("\n".join(f"    {line}" for line in (attempt.answer.text or attempt.answer.detail).splitlines())))
    if attempt.trace is not None:
        for facet in attempt.trace.facets:
            console.print(f"  [cyan]{escape(facet.label)}[/]: {escape(facet.text)}")
        console.print(f"  [bold cyan]Answer[/]: {escape(attempt.trace.answer)}")
    if attempt.screened is not None:
        for name, fault in screen_results(attempt.screened, settings.screen).items():
            shown = "[green]pass[/]" if fault is None else f"[red]{escape(fault.reason)}[/]: {escape(fault.detail)}"
            console.print(f"  [dim]{escape(name):<26}[/] {shown}")
    if attempt.verify_prompt is not None:
        _prompt("verify", attempt.verify_prompt)
        shown = f"{attempt.confidence:.3f}" if attempt.confidence is not None else "none"
        console.print(f"  confidence = {shown} (more than {settings.verify.threshold:g} is wanted)")
    for question in attempt.facet_questions:
        _prompt(f"verify {question.name}", question.prompt)
        shown = f"{question.confidence:.3f}" if question.confidence is not None else "none"
        console.print(f"  confidence = {shown} (more than {settings.verify.facet_threshold:g} is wanted)")


def _prompt(title: str, prompt: Prompt) -> None:
    from pipeline.report.build_report import in_words

    text = in_words(prompt)
    console.print(f"[dim]  {escape(title)} prompt[/]")
    console.print(escape("\n".join(f"    {line}" for line in text.strip().splitlines())), style="dim")
