"""`mbeir-cot train` and `mbeir-cot eval`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, get_args

import typer
from rich.markup import escape

from mbeir_cot import printing
from mbeir_cot.options import ImageRoots, choose
from pipeline.progress_meter import quiet_progress

if TYPE_CHECKING:
    from schemas.training import TrainConfig, Variant

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file such as configs/train-pocket.yaml.")]
Run = Annotated[
    Path,
    typer.Argument(metavar="CONFIG|RUN|MODEL", help="A config file, a run's or a model's directory, or ORG/NAME."),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: key.sub=value. May be repeated.")]
Out = Annotated[Path | None, typer.Option(help="The run's directory [default: the config's `out`].")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]

console = printing.console(least_width=140)


def run_settings(
    config: Path, overrides: list[str] | None, out: Path | None, image_roots: list[Path] | None = None
) -> TrainConfig:
    from trainer.model.location import load_settings

    given = [*(overrides or ()), *([f"out={out}"] if out is not None else [])]
    return load_settings(config, given, image_roots=image_roots or ())


class TrainedVariant(NamedTuple):
    settings: TrainConfig
    variant: Variant
    model: Path


@contextmanager
def trained_variant(
    run: Path, variant: str, overrides: list[str] | None, image_roots: list[Path] | None, *, quiet: bool
) -> Iterator[TrainedVariant]:
    """What a command needs that embeds with one variant of a run; quiet until its end, if asked."""
    from schemas.training import Variant
    from trainer.model.location import locate, model_directory

    chosen = choose("--variant", variant, get_args(Variant))
    run = locate(run)
    settings = run_settings(run, overrides, None, image_roots)
    with quiet_progress(quiet):
        yield TrainedVariant(settings, chosen, model_directory(settings, run, chosen))


def train(
    config: Config,
    out: Out = None,
    overrides: Set = None,
    processes: Annotated[int, typer.Option(min=1, help="Train with this many processes on this machine: one per GPU.")] = 1,
    ray_workers: Annotated[
        int | None, typer.Option(min=1, help="Train with this many processes of a Ray cluster (RAY_ADDRESS, or this machine).")
    ] = None,
    ray_restarts: Annotated[int, typer.Option(min=0, help="Restart the group at most this often if a process fails.")] = 0,
    image_roots: ImageRoots = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the plan: parameters, tokens, memory, steps, hours.")
    ] = False,
    mfu: Annotated[
        float | None,
        typer.Option(min=1e-6, max=1, help="With --dry-run: the share of the peak that is used [default: as measured]."),
    ] = None,
    peak: Annotated[
        float | None, typer.Option(min=1e-3, help="With --dry-run: a device's dense bfloat16 TFLOP/s [default: 989, H100 SXM].")
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="With --dry-run: M-BEIR-CoT's published counts instead of the config's data.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON on standard output.")] = False,
    quiet: Quiet = False,
) -> None:
    """Trains TRACE, and the controls that the config names, on a dataset of `mbeir-cot build`.

    After any interruption, run it again: it resumes from the last checkpoint, with the losses of an uninterrupted run. Use
    --processes to distribute it on this machine, torchrun or accelerate on a cluster, --ray-workers on Ray. Each variant is
    saved in OUT/VARIANT/model.
    """
    from schemas.errors import ConfigError

    settings = run_settings(config, overrides, out, image_roots)
    if ray_restarts and ray_workers is None:
        raise ConfigError("--ray-restarts has no effect without --ray-workers", "give both, or neither")
    if processes > 1 and (ray_workers is not None or int(os.environ.get("WORLD_SIZE", "1")) > 1):
        raise ConfigError("--processes cannot be combined with --ray-workers or torchrun", "use one of them")
    if dry_run:
        from trainer.training.cost import PEAK
        from trainer.training.dry_run import format_plan, make_plan

        devices = ray_workers or max(processes, int(os.environ.get("WORLD_SIZE", "1")))
        flops = PEAK if peak is None else peak * 1e12
        planned = make_plan(settings, devices, mfu=mfu, peak=flops, published=published)
        console.print(planned.model_dump_json(indent=1) if as_json else format_plan(planned), markup=False)
        return
    if as_json or published or mfu is not None or peak is not None:
        raise ConfigError("--json, --mfu, --peak and --published have no effect without --dry-run", "add it, or leave them out")
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


def evaluate(
    config: Run,
    out: Out = None,
    overrides: Set = None,
    zero_shot: Annotated[
        Path | None, typer.Option(metavar="ROOT", help="Score the zero-shot suite below ROOT too, every variant.")
    ] = None,
    image_roots: ImageRoots = None,
    quiet: Quiet = False,
) -> None:
    """Scores what `train` trained: hit rates per dataset-task as UniIR counts them, think rates, tokens, queries/s.

    TRACE is also scored with other routes (by modality; at random with the same think rate) and, if the config names them, with
    the teacher's traces. Embeddings, run files and tables are kept in UniIR's layout in OUT/eval. What `zero-shot run` or
    --zero-shot scored is shown too.
    """
    from pipeline.files.state import read_model
    from schemas.errors import ConfigError
    from trainer.evaluation.diagnostics import Diagnostics
    from trainer.evaluation.evaluate_run import diagnostics_file, evaluate_run, results_file
    from trainer.evaluation.tables import render_diagnostics, render_results
    from trainer.model.location import is_checkpoint, locate
    from trainer.zero_shot.results import read_results
    from trainer.zero_shot.tables import render_suite

    config = locate(config)
    alone = is_checkpoint(config)
    if alone and out is None:
        raise ConfigError(f"{config} is a model, and no directory for its scores is given", "name one with --out")
    settings = run_settings(config, overrides, out, image_roots)
    if config.is_dir() and out is None:
        settings = settings.model_copy(update={"out": config})  # it may have been moved since
    notices: list[str] = []
    with quiet_progress(quiet):
        results = evaluate_run(settings, model=config if alone else None, notice=notices.append)
        if zero_shot is not None:
            _score_suite(settings, config if alone else None, zero_shot, image_roots or [])
    directory, split = settings.out / "eval", settings.evaluation.split
    console.print(render_results(results, split, settings.data.hold_out))
    if diagnostics_file(settings).is_file():
        console.print(render_diagnostics(read_model(diagnostics_file(settings), Diagnostics)))
    if suites := read_results(settings.out):
        console.print(render_suite(suites))
    for notice in notices:
        console.print(f"[yellow]{escape(notice)}[/]")
    files = ", ".join(file.name for file in (results_file(settings), diagnostics_file(settings)) if file.is_file())
    console.print(f"{escape(str(directory))}: embeddings, run files and tables in UniIR's layout; {escape(files)}")


def _score_suite(settings: TrainConfig, model: Path | None, root: Path, image_roots: list[Path]) -> None:
    """Every variant with its own routes. model: instead of the run's."""
    from trainer.zero_shot.evaluate_suite import evaluate_suite
    from trainer.zero_shot.results import OWN_ROUTE, suite_directory

    for variant in settings.variants:
        route = OWN_ROUTE[variant]
        place = suite_directory(settings.out, variant, route)
        own = model or settings.out / variant / "model"
        evaluate_suite(settings, own, root=root, out=place, route=route, variant=variant, image_roots=image_roots)
