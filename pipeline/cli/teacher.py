"""`mbeir-cot serve` and `mbeir-cot teacher …`: the teacher by itself."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from pipeline.cli import printing
from pipeline.cli.options import ImageRoots

if TYPE_CHECKING:
    from pipeline.teacher.check import Example
    from pipeline.teacher.hosting.preflight import Finding
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
    skip: Annotated[int, typer.Option(help="Which query of each file.")] = 0,
    image_roots: ImageRoots = None,
) -> None:
    """Starts (or reaches) the teacher, asks what it can do, and shows one worked answer per task family.

    Exits with 1 if the teacher lacks something that the config needs.
    """
    from pipeline.config import load_config
    from schemas.config import BuildConfig

    settings = load_config(config, BuildConfig, tuple(overrides or ()), image_roots=image_roots or ())
    with hosted(settings) as endpoints:
        ok = asyncio.run(_check(settings, endpoints, skip))
    raise typer.Exit(0 if ok else 1)


@app.command()
def fetch(config: Config, overrides: Set = None) -> None:
    """Downloads the models of the config's managed servers, teacher's and verifier's, into Hugging Face's cache.

    `build` does so by itself, on each node that runs a server. A local directory is only looked at.
    """
    from pipeline.config import load_config
    from pipeline.teacher.hosting.weights import fetch_model
    from schemas.config import BuildConfig

    settings = load_config(config, BuildConfig, tuple(overrides or ()))
    for name, one in (("teacher", settings.teacher), ("verifier", settings.verifier)):
        if one is None:
            continue
        if one.hosting != "managed" or one.server is None:
            console.print(f"{escape(name)}: runs elsewhere, nothing to fetch")
            continue
        errors.print(f"{escape(name)}: fetching {escape(one.server.model)}")
        console.print(f"{escape(name)}: {escape(str(fetch_model(one.server)))}")


def serve(config: Config, overrides: Set = None) -> None:
    """Runs the config's managed vLLM server in the foreground until interrupted."""
    from pipeline.config import load_config
    from schemas.config import BuildConfig
    from schemas.errors import ConfigError

    settings = load_config(config, BuildConfig, tuple(overrides or ()))
    if settings.teacher.hosting != "managed":
        raise ConfigError(f"{config} uses external endpoints", "there is nothing to serve; set teacher.hosting: managed")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with hosted(settings, register=True) as endpoints:
        model = settings.teacher.server.model if settings.teacher.server else ""
        console.print(f"serving {escape(model)} at {escape(endpoints[0].url)}")
        console.print("Ctrl-C stops it.")
        try:
            stop.wait()
        except KeyboardInterrupt:
            console.print("stopping")


@contextmanager
def hosted(settings: BuildConfig, *, register: bool = False) -> Iterator[tuple[Endpoint, ...]]:
    """The endpoints of the config; a managed server lives as long as the context."""
    from pipeline.teacher.hosting.registry import registered, running
    from pipeline.teacher.hosting.server import ManagedServer
    from pipeline.teacher.hosting.weights import fetch_model
    from pipeline.teachers import server_config

    config = settings.teacher
    managed = server_config(config, settings.mbeir)
    if managed is None:
        yield config.endpoints
        return
    if config.reuse and not register and (found := running(managed)) is not None:
        errors.print(f"using the server at {escape(found.url)}")
        yield (found,)
        return
    if not Path(managed.model).exists():
        errors.print(f"downloading {escape(managed.model)}, or finding it in the cache")
        fetch_model(managed)
    server = ManagedServer(managed)
    with errors.status(f"starting vLLM with {escape(managed.model)}") as status:
        endpoint = server.start(lambda seconds, line: status.update(f"starting vLLM, {seconds:.0f} s: {escape(line[-90:])}"))
    try:
        with registered(managed, endpoint, server.pid or 0) if register else nullcontext():
            yield (endpoint,)
    finally:
        server.stop()


async def _check(settings: BuildConfig, endpoints: tuple[Endpoint, ...], skip: int) -> bool:
    from pipeline.teacher.check import examples
    from pipeline.teacher.client import TeacherClient
    from pipeline.teacher.hosting.preflight import preflight

    found = [finding for each in await asyncio.gather(*(preflight(e, settings.teacher) for e in endpoints)) for finding in each]
    for finding in found:
        console.print(_line(finding))
    if not all(finding.ok for finding in found):
        return False
    async with TeacherClient(settings.teacher.transport.client(endpoints)) as client:
        async for example in examples(settings, client, skip=skip):
            _show(example, settings)
    return True


def _line(finding: Finding) -> str:
    place = f"{finding.ability:<11} {finding.endpoint}"
    if finding.ok:
        return f"[green]ok[/]      {place}"
    remedy = f"\n        what to do: {escape(finding.remedy)}"
    return f"[red]missing[/] {place}: {escape(finding.detail)}{remedy}"


def _show(example: Example, settings: BuildConfig) -> None:
    from pipeline.judge import ASSESS, VERIFY
    from prompts import ImageSlot
    from schemas.judgement import Judgement
    from schemas.trace import Trace

    query = example.query
    console.rule(f"[bold]{escape(example.family.name)}[/]  {escape(f'{query.dataset_task.name}  {query.qid}')}", align="left")
    if query.query_img_path:
        console.print(f"[dim]image [/] {escape(str(settings.mbeir / query.query_img_path))}")
    prompt = "".join(f"[{part.role} image]" if isinstance(part, ImageSlot) else part for part in example.reason_prompt)
    console.print(f"[dim]prompt[/] {escape(prompt.strip())}")
    for name, judged, labels in (("P(complex)", example.assessed, ASSESS), ("P(yes)", example.verified, VERIFY)):
        if judged is None:
            continue
        value = judged.judgement
        if isinstance(value, Judgement):
            shown = f"{value.probability:.3f} ({value.source}; {labels.positive} or {labels.negative})"
        else:
            shown = f"none: {value.detail if value else judged.answer.detail}"
        console.print(f"[dim]{escape(name)}[/] {escape(shown)}")
    answer, trace = example.reasoned.answer, example.reasoned.trace
    if isinstance(trace, Trace):
        for facet in trace.facets:
            console.print(f"  [cyan]{escape(facet.label)}[/]: {escape(facet.text)}")
        console.print(f"  [bold cyan]Answer[/]: {escape(trace.answer)}")
    else:
        console.print(
            f"  [red]{escape(trace.reason if trace else answer.outcome)}[/]: {escape(trace.detail if trace else answer.detail)}"
        )
        console.print(f"  raw: {escape(answer.text)}")
    target = " ".join(
        filter(None, (example.target.txt, str(settings.mbeir / example.target.img_path) if example.target.img_path else ""))
    )
    console.print(f"[dim]target[/] {escape(target)}")
    console.print(f"[dim]cost  [/] {answer.prompt_tokens:,} + {answer.completion_tokens:,} tokens, {answer.latency_s:.2f} s")
