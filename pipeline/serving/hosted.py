"""Provides a config's servers for the duration of a context, without a build: reached, reused or started. One server needs no
Ray."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from pipeline.serving.preflight import Who
from pipeline.serving.registry import registered, running
from pipeline.serving.server import ManagedServer
from pipeline.serving.teacher_servers import Endpoints, Teachers, server_config
from pipeline.serving.weights import fetch_model
from schemas.config import BuildConfig
from schemas.hosting import Endpoint

Tell = Callable[[str], None]
"""Called with what the caller waits for; "" when the wait is over."""


def silent(doing: str) -> None:
    pass


@contextmanager
def hosted(
    settings: BuildConfig, who: Who = "teacher", *, register: bool = False, tell: Tell = silent
) -> Iterator[tuple[Endpoint, ...]]:
    """The endpoints of the config's teacher or verifier; a managed server lives as long as the context."""
    config = settings.verifier if who == "verifier" and settings.verifier is not None else settings.teacher
    managed = server_config(config, settings.mbeir)
    if managed is None:
        yield config.endpoints
        return
    if config.reuse and not register and (endpoint := running(managed)) is not None:
        tell(f"using the running server at {endpoint.url}")
        yield (endpoint,)
        return
    if not Path(managed.model).exists():
        tell(f"downloading {managed.model}, or finding it in the cache")
        fetch_model(managed)
    server = ManagedServer(managed)
    tell(f"starting vLLM with {managed.model}")
    endpoint = server.start(lambda seconds, line: tell(f"starting vLLM, {seconds:.0f} s: {line[-90:]}"))
    tell("")
    try:
        with registered(managed, endpoint, server.pid or 0) if register else nullcontext():
            yield (endpoint,)
    finally:
        server.stop()


@contextmanager
def hosted_pair(settings: BuildConfig, *, tell: Tell = silent) -> Iterator[Endpoints]:
    """Endpoints of the teacher and the verifier together. Two managed models are placed on GPUs as in a build."""
    verifier = settings.verifier if settings.verify.enabled else None
    if verifier is None:
        with hosted(settings, tell=tell) as endpoints:
            yield Endpoints(endpoints, endpoints)
    elif settings.teacher.hosting == verifier.hosting == "managed":
        tell("starting teacher and verifier")
        with tempfile.TemporaryDirectory(prefix="mbeir-cot-logs-") as logs:
            teachers = Teachers(settings, Path(logs), logs)
            try:
                both = teachers.wait()
                tell("")
                yield both
            finally:
                teachers.stop()
    else:
        with hosted(settings, tell=tell) as asked, hosted(settings, "verifier", tell=tell) as verifying:
            yield Endpoints(asked, verifying)
