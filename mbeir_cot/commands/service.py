"""`mbeir-cot serve-embeddings`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mbeir_cot import printing
from mbeir_cot.commands.train import Run, Set
from schemas.service import ServiceLimits, ServiceSettings

console = printing.console()
_DEFAULT = ServiceSettings(name="")
_LIMITS = _DEFAULT.limits


def serve_embeddings(
    run: Run,
    variant: Annotated[str, typer.Option(help="trace, direct or always-reason.")] = "trace",
    overrides: Set = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = _DEFAULT.host,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 for any free one.")] = _DEFAULT.port,
    name: Annotated[str | None, typer.Option(help="The model's name in requests [default: RUN as given].")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Environment variable with the key that clients must send.")
    ] = None,
    media_root: Annotated[
        list[Path] | None,
        typer.Option(exists=True, file_okay=False, help="A directory whose images requests may name. May be repeated."),
    ] = None,
    remote_host: Annotated[
        list[str] | None, typer.Option(metavar="HOST", help="A host from which images are fetched. May be repeated.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs that are embedded together.")] = _DEFAULT.batch_size,
    batch_wait_ms: Annotated[
        float, typer.Option(min=0, help="How long an idle engine waits for a fuller batch.")
    ] = _DEFAULT.batch_wait_ms,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Then a request gets 504.")] = _DEFAULT.timeout_s,
    drain_s: Annotated[
        float, typer.Option(min=0, help="After SIGTERM, how long accepted requests may go on.")
    ] = _DEFAULT.drain_s,
    max_waiting: Annotated[int, typer.Option(min=1, help="Inputs accepted and not answered; then 429.")] = _LIMITS.waiting,
    max_inputs: Annotated[int, typer.Option(min=1, help="Inputs of a request.")] = _LIMITS.inputs,
    max_images: Annotated[int, typer.Option(min=1, help="Images of an input.")] = _LIMITS.images,
    max_pixels: Annotated[int, typer.Option(min=1, help="Width x height of an image.")] = _LIMITS.pixels,
    max_body_mib: Annotated[float, typer.Option(min=0.01, help="MiB of a request.")] = _LIMITS.body_mib,
    log: Annotated[
        Path | None,
        typer.Option(help="Append to this file what happens, and to X-engine.log beside it [default: standard error]."),
    ] = None,
) -> None:
    """Serves OpenAI's /v1/embeddings: queries reason or go straight to their embedding; candidates never reason.

    SIGTERM or Ctrl-C finishes what was accepted. /health says whether requests are taken, /metrics is for Prometheus.
    """
    from functools import partial

    from pipeline.files.run_log import run_log
    from schemas.errors import InputError
    from trainer.model.location import locate
    from trainer.service.server import load_embedder, serve_embeddings

    if not locate(run).exists():
        raise InputError(f"{run} does not exist", "name a run, a model's directory, or ORG/NAME on the Hub")
    settings = ServiceSettings(
        host=host,
        port=port,
        name=name if name is not None else str(run),
        api_key_env=api_key_env,
        media_roots=tuple(media_root or ()),
        remote_hosts=tuple(remote_host or ()),
        batch_size=batch_size,
        batch_wait_ms=batch_wait_ms,
        timeout_s=timeout_s,
        drain_s=drain_s,
        limits=ServiceLimits(
            waiting=max_waiting,
            inputs=min(max_inputs, max_waiting),
            images=max_images,
            pixels=max_pixels,
            body_mib=max_body_mib,
        ),
    )
    if api_key_env is None and host not in ("127.0.0.1", "::1", "localhost"):
        console.print("[yellow]anyone who reaches this address can use it: --api-key-env names a key[/]")
    engine_log = log.with_name(f"{log.stem}-engine.log") if log is not None else None
    load = partial(load_embedder, run, variant, tuple(overrides or ()), log=engine_log, key=api_key_env)
    with run_log(log, keys=[api_key_env]):
        serve_embeddings(settings, load, ready=lambda url: console.print(f"{escape(settings.name)} is served at {escape(url)}"))
