"""`mbeir-cot serve` and `mbeir-cot teacher …`: the teacher without a build."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from mbeir_cot import printing
from mbeir_cot.options import ImageRoots

if TYPE_CHECKING:
    from pipeline.serving.hosted import Tell
    from pipeline.serving.preflight import Example, Finding, Who
    from pipeline.teacher.trial_requests import Questions
    from schemas.config import BuildConfig
    from schemas.hosting import Endpoint

app = typer.Typer(no_args_is_help=True)

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file such as configs/pocket.yaml.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: key.sub=value. May be repeated.")]

console = printing.console()
errors = printing.console(stderr=True)


@app.callback()
def teacher() -> None:
    pass


@app.command()
def check(
    config: Config,
    overrides: Set = None,
    skip: Annotated[int, typer.Option(help="Number of queries to skip in each file.")] = 0,
    image_roots: ImageRoots = None,
) -> None:
    """Starts (or reaches) teacher and verifier, sends the requests of a build, and shows one example per task family.

    Exits with 1 if a request fails, and names the setting that fixes it.
    """
    from pipeline.config import load_config
    from pipeline.report.terminal import render_example
    from pipeline.serving.hosted import hosted
    from pipeline.serving.preflight import Example
    from pipeline.teacher.trial_requests import Questions
    from schemas.config import BuildConfig

    settings = load_config(config, BuildConfig, tuple(overrides or ()), image_roots=image_roots or ())
    questions = Questions(settings)
    examples = [Example(sample) for sample in questions.samples(("val", "test", "train"), skip=skip)]
    whose: tuple[Who, ...] = (
        ("teacher", "verifier") if settings.verifier is not None and settings.verify.enabled else ("teacher",)
    )
    ok = True
    for who in whose:  # one after the other: two managed servers may not fit on the GPUs
        with told() as tell, hosted(settings, who, tell=tell) as endpoints:
            ok &= asyncio.run(_check(settings, who, endpoints, questions, examples))
    for example in examples:
        console.print(render_example(example, questions.reason_prompt(example.sample), settings))
    raise typer.Exit(0 if ok else 1)


@app.command()
def fetch(config: Config, overrides: Set = None) -> None:
    """Downloads the models of the config's managed teacher and verifier into Hugging Face's cache.

    `build` does this itself on each node that runs a server. A local model directory is only checked.
    """
    from pipeline.config import load_config
    from pipeline.serving.weights import fetch_model
    from schemas.config import BuildConfig

    settings = load_config(config, BuildConfig, tuple(overrides or ()))
    for name, model in (("teacher", settings.teacher), ("verifier", settings.verifier)):
        if model is None:
            continue
        if model.hosting != "managed" or model.server is None:
            console.print(f"{escape(name)}: external, nothing to fetch")
            continue
        errors.print(f"{escape(name)}: fetching {escape(model.server.model)}")
        console.print(f"{escape(name)}: {escape(str(fetch_model(model.server)))}")


def serve(config: Config, overrides: Set = None) -> None:
    """Runs the config's managed vLLM server in the foreground until interrupted."""
    from pipeline.config import load_config
    from pipeline.serving.hosted import hosted
    from schemas.config import BuildConfig
    from schemas.errors import ConfigError

    settings = load_config(config, BuildConfig, tuple(overrides or ()))
    if settings.teacher.hosting != "managed":
        raise ConfigError(f"{config} uses external endpoints", "set teacher.hosting: managed to run a server here")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with told() as tell, hosted(settings, register=True, tell=tell) as endpoints:
        model = settings.teacher.server.model if settings.teacher.server else ""
        console.print(f"serving {escape(model)} at {escape(endpoints[0].url)}")
        console.print("Ctrl-C stops it.")
        try:
            stop.wait()
        except KeyboardInterrupt:
            console.print("stopping")


@contextmanager
def told() -> Iterator[Tell]:
    """Shows on standard error what the command waits for."""
    status = errors.status("")

    def tell(doing: str) -> None:
        if doing.startswith("using "):  # a line that stays: which server answers
            status.stop()
            errors.print(escape(doing))
        elif doing:
            status.update(escape(doing))
            status.start()
        else:
            status.stop()

    try:
        yield tell
    finally:
        status.stop()


async def _check(
    settings: BuildConfig, who: Who, endpoints: tuple[Endpoint, ...], questions: Questions, examples: list[Example]
) -> bool:
    """Whether all requests succeed. Stores the first endpoint's answers in `examples`."""
    from pipeline.serving.preflight import Example, preflight

    shown = [examples, *([Example(example.sample, reasoned=example.reasoned) for example in examples] for _ in endpoints[1:])]
    checked = await asyncio.gather(
        *(preflight(endpoint, who, settings, questions, each) for endpoint, each in zip(endpoints, shown, strict=True))
    )
    console.print(f"[bold]{escape(who)}[/]")
    for abilities in checked:
        for finding in abilities.findings:
            console.print(_line(finding))
    return all(abilities.ok for abilities in checked)


def _line(finding: Finding) -> str:
    place = f"{escape(finding.ability):<11} {escape(finding.endpoint)}"
    if finding.trouble is None:
        return f"[green]ok[/]      {place}"
    remedy = f"\n        what to do: {escape(finding.trouble.remedy)}"
    return f"[red]missing[/] {place}: {escape(finding.trouble.detail)}{remedy}"
