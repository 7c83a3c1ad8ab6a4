"""`mbeir-cot train` and `mbeir-cot eval`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mbeir_cot import printing
from mbeir_cot.options import ImageRoots
from pipeline.meter import quiet_progress

if TYPE_CHECKING:
    from schemas.training import TrainConfig
    from trainer.evaluation.results import Result, TaskResult

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file such as configs/train-pocket.yaml.")]
Run = Annotated[
    Path,
    typer.Argument(metavar="CONFIG|RUN|MODEL", help="A config file, a run's or a model's directory, or ORG/NAME."),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: key.sub=value. May be repeated.")]
Out = Annotated[Path | None, typer.Option(help="The run's directory [default: the config's `out`].")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]

_FAMILIES = ("visual", "text", "composed", "knowledge")

console = printing.console(least_width=140)


def run_settings(
    config: Path, overrides: list[str] | None, out: Path | None, image_roots: list[Path] | None = None
) -> TrainConfig:
    from trainer.model.location import load_settings

    given = [*(overrides or ()), *([f"out={out}"] if out is not None else [])]
    return load_settings(config, given, image_roots=image_roots or ())


def train(
    config: Config,
    out: Out = None,
    overrides: Set = None,
    processes: Annotated[int, typer.Option(min=1, help="Fit with this many processes of this machine: one for each GPU.")] = 1,
    ray_workers: Annotated[
        int | None, typer.Option(min=1, help="Fit with this many processes of a Ray cluster (RAY_ADDRESS, or this machine).")
    ] = None,
    ray_restarts: Annotated[int, typer.Option(min=0, help="Restart the group this often when one of them fails.")] = 0,
    image_roots: ImageRoots = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what it would be: parameters, tokens, memory, steps, hours.")
    ] = False,
    mfu: Annotated[
        float | None,
        typer.Option(min=1e-6, max=1, help="With --dry-run: useful share of the peak (default: what was measured)."),
    ] = None,
    peak: Annotated[
        float | None, typer.Option(min=1e-3, help="With --dry-run: a device's dense bfloat16 TFLOP/s (default: 989, H100 SXM).")
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="With --dry-run: M-BEIR-CoT's published counts instead of the config's data.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON on standard output.")] = False,
    quiet: Quiet = False,
) -> None:
    """Fits TRACE, and the controls that the config names, on a dataset of `mbeir-cot build`.

    After any interruption, run it again: it resumes from the last checkpoint, with the losses of an uninterrupted run. Use
    --processes to distribute it on this machine, torchrun or accelerate on a cluster, --ray-workers on Ray. Each variant is
    saved in OUT/VARIANT/model.
    """
    from schemas.errors import ConfigError

    settings = run_settings(config, overrides, out, image_roots)
    if ray_restarts and ray_workers is None:
        raise ConfigError("--ray-restarts says nothing without --ray-workers", "give both, or neither")
    if processes > 1 and (ray_workers is not None or int(os.environ.get("WORLD_SIZE", "1")) > 1):
        raise ConfigError("--processes beside --ray-workers or torchrun", "let one of them start the processes")
    if dry_run:
        from trainer.training.cost import PEAK
        from trainer.training.dry_run import format_plan, make_plan

        devices = ray_workers or max(processes, int(os.environ.get("WORLD_SIZE", "1")))
        flops = PEAK if peak is None else peak * 1e12
        planned = make_plan(settings, devices, mfu=mfu, peak=flops, published=published)
        console.print(planned.model_dump_json(indent=1) if as_json else format_plan(planned), markup=False)
        return
    if as_json or published or mfu is not None or peak is not None:
        raise ConfigError(
            "--json, --mfu, --peak and --published say nothing without --dry-run", "give it too, or leave them out"
        )
    if ray_workers is not None:
        from trainer.training.launch_ray import train_on_ray

        with quiet_progress(quiet):
            train_on_ray(settings, ray_workers, restarts=ray_restarts)
    elif processes > 1:
        from trainer.training.launch_local import train_locally

        with quiet_progress(quiet):
            train_locally(settings, processes)
    else:
        from trainer.training.train import train as run

        with quiet_progress(quiet):
            for variant in settings.variants:
                run(settings, variant)
    if os.environ.get("RANK", "0") == "0":
        for variant in settings.variants:
            console.print(escape(f"{variant}: {settings.out / variant / 'model'}"))
        if settings.data.skip_unreadable:
            from trainer.data.exclusions import describe_exclusions, load_exclusions

            file = settings.out / "unreadable.json"
            if left_out := load_exclusions(file):
                console.print(f"[yellow]{escape(describe_exclusions('records', left_out, file))}[/]")


def evaluate(config: Run, out: Out = None, overrides: Set = None, image_roots: ImageRoots = None, quiet: Quiet = False) -> None:
    """Scores what `train` fitted: hit rates per dataset-task as UniIR counts them, think rates, tokens, queries/s.

    TRACE is also scored with other routes (by modality; at random with the same think rate) and, if the config names them, with
    the teacher's traces. Embeddings, run files and tables are kept in UniIR's layout in OUT/eval.
    """
    from schemas.errors import ConfigError
    from trainer.evaluation.evaluate_run import diagnostics_file, evaluate_run, results_file
    from trainer.model.location import is_checkpoint, locate

    config = locate(config)
    alone = is_checkpoint(config)
    if alone and out is None:
        raise ConfigError(f"{config} is a model and no place for its scores", "name a directory with --out")
    settings = run_settings(config, overrides, out, image_roots)
    if config.is_dir() and out is None:
        settings = settings.model_copy(update={"out": config})  # it may have been moved since
    notices: list[str] = []
    with quiet_progress(quiet):
        results = evaluate_run(settings, model=config if alone else None, notice=notices.append)
    directory, split = settings.out / "eval", settings.evaluation.split
    _show(results, split, settings.data.hold_out)
    _show_diagnostics(diagnostics_file(settings))
    for notice in notices:
        console.print(f"[yellow]{escape(notice)}[/]")
    files = ", ".join(file.name for file in (results_file(settings), diagnostics_file(settings)) if file.is_file())
    console.print(f"{escape(str(directory))}: embeddings, run files and tables in UniIR's layout; {escape(files)}")


def _show(results: list[Result], split: str, held_out: tuple[str, ...] = ()) -> None:
    hits = Table("hit@k on " + escape(split), "k", *(escape(result.name) for result in results))
    rows = list(enumerate(results[0].tasks))
    for row, first in [one for one in rows if one[1].task not in held_out]:
        cells = [_pair(result.tasks[row].local, result.tasks[row].union) for result in results]
        hits.add_row(escape(first.task), str(first.k), *cells)
    hits.add_section()
    if held_out:
        for row, first in [one for one in rows if one[1].task in held_out]:
            cells = [_pair(result.tasks[row].local, result.tasks[row].union) for result in results]
            hits.add_row(f"held out: {escape(first.task)}", str(first.k), *cells)
        for name, tasks in (("held out", held_out), ("trained", tuple(t.task for _, t in rows if t.task not in held_out))):
            hits.add_row(f"mean {escape(name)}", "", *(_pair(r.mean_of(tasks), r.mean_of(tasks, union=True)) for r in results))
        hits.add_section()
    for family in _FAMILIES:
        hits.add_row(f"mean {escape(family)}", "", *(_pair(r.mean(family), r.mean(family, union=True)) for r in results))
    hits.add_row("[bold]mean[/]", "", *(_pair(r.mean(), r.mean(union=True)) for r in results))
    console.print(hits)
    console.print("local pool / union of all pools; unweighted means over dataset-tasks, as papers report")
    costs = Table("what it costs", *_COSTS)
    for result in results:
        costs.add_row(escape(result.name), *_cost_cells(result.tasks))
    for result in results:
        if result.name == "trace":
            costs.add_section()
            for task in result.tasks:
                costs.add_row(f"trace, {escape(task.task)}", *_cost_cells([task]))
    console.print(costs)
    console.print("latency: from a query's prefill to its embedding, in batches; of several datasets, the slowest's")
    console.print("queries/s: of all workers; not measured where a routing shares embeddings with an earlier one")


def _show_diagnostics(file: Path) -> None:
    """Shows what explains the table (`trainer.evaluation.diagnostics`)."""
    from pipeline.files.state import read_model
    from trainer.evaluation.diagnostics import Diagnostics

    if not file.is_file():
        return
    found = read_model(file, Diagnostics)
    groups = (
        ("by the teacher's P(complex)", found.by_difficulty),
        ("by the trace's agreement with the teacher's", found.by_agreement),
    )
    for title, part in groups:
        if part:
            table = Table(
                f"trace, {escape(title)}",
                "queries",
                "think rate",
                "trace",
                *(["direct"] if part[0].direct_local is not None else []),
            )
            for one in part:
                direct = [] if one.direct_local is None else [_pair(one.direct_local, one.direct_union)]
                table.add_row(
                    escape(one.name), f"{one.queries:,}", f"{one.think_rate:.1%}", _pair(one.local, one.union), *direct
                )
            console.print(table)
    if found.swap_test:
        table = Table("swap test: queries that reasoned, after", "queries", "cosine to own", "hit@k", "another first result")
        for swap in found.swap_test:
            cells = (f"{swap.queries:,}", f"{swap.cosine:.3f}", _pair(swap.local, swap.union), f"{swap.first_changed:.1%}")
            table.add_row(escape(swap.trace), *cells)
        console.print(table)
    if found != Diagnostics():
        console.print("these are means over queries, not over dataset-tasks")


_COSTS = ("think rate", "tokens/query", "queries/s", "p50 ms", "p95 ms", "cut traces", "trace = teacher's")


def _cost_cells(tasks: list[TaskResult]) -> list[str]:
    costs = [task.costs for task in tasks]
    queries, seconds = sum(cost.queries for cost in costs), sum(cost.seconds for cost in costs)
    known = [task.trace_accuracy for task in tasks if task.trace_accuracy is not None]
    return [
        f"{sum(cost.reasoned for cost in costs) / max(1, queries):.1%}",
        f"{sum(cost.tokens for cost in costs) / max(1, queries):.1f}",
        f"{queries / seconds:.0f}" if seconds else "",
        f"{1e3 * max(cost.p50_s for cost in costs):.0f}" if any(cost.p50_s for cost in costs) else "",
        f"{1e3 * max(cost.p95_s for cost in costs):.0f}" if any(cost.p95_s for cost in costs) else "",
        f"{sum(cost.cut for cost in costs):,}",
        f"{sum(known) / len(known):.1%}" if known else "",
    ]


def _pair(local: float, union: float | None) -> str:
    return f"{100 * local:.1f}" + (f" / {100 * union:.1f}" if union is not None else "")
