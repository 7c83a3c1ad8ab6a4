"""Runs the service: starts the engine, listens, and stops without losing what was accepted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

import uvicorn

from pipeline.files.run_log import open_run_log
from schemas.errors import ConfigError, InputError
from schemas.service import ServiceSettings
from trainer.embedding.trace_embedder import TraceEmbedder
from trainer.service.engine_process import EngineProcess
from trainer.service.http_api import EmbeddingService

logger = logging.getLogger(__name__)

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_LAST_ANSWERS_S: Final = 5


class _Server(uvicorn.Server):
    """uvicorn, which on a signal stops listening and finishes what it has. A second signal ends it at once.

    Its own way ends the process with the signal; a service that has stopped as asked exits with 0.
    """

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        else:
            self.should_exit = True
            self._on_stop()


def serve_embeddings(
    settings: ServiceSettings, load: Callable[[], TraceEmbedder], *, ready: Callable[[str], None] = lambda url: None
) -> None:
    """Serves until SIGTERM or SIGINT. `ready` is called with the URL when the first request can be answered.

    Raises ConfigError for a key that is missing or an address that cannot be used, what `load` raises, and EngineLost if the
    engine cannot be kept running.
    """
    key = _key(settings.api_key_env)
    with _listen(settings.host, settings.port) as listener:
        asyncio.run(_serve(settings, load, key, listener=listener, ready=ready))


def load_embedder(run: Path, variant: str, overrides: Sequence[str], *, log: Path | None, key: str | None) -> TraceEmbedder:
    """In the engine's process: opens its log, then loads a run's or model's embedder, which embeds by `adaptive.engine`."""
    open_run_log(log, keys=[key])
    return TraceEmbedder.load(run, variant, overrides=overrides, engine=None)


async def _serve(
    settings: ServiceSettings,
    load: Callable[[], TraceEmbedder],
    key: str,
    *,
    listener: socket.socket,
    ready: Callable[[str], None],
) -> None:
    loop = asyncio.get_running_loop()
    engine = EngineProcess(load, patience_s=settings.engine_patience_s)
    service = EmbeddingService(settings, engine, key=key)

    def on_stop() -> None:
        logger.info("stopping: %d accepted inputs are finished first", service.admission.waiting)
        service.batcher.draining = True
        loop.call_later(settings.drain_s, service.batcher.fail_all, "stopping", "the service has stopped", 5.0)

    config = uvicorn.Config(
        service.app(),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=int(settings.drain_s + _LAST_ANSWERS_S),
        backlog=2048,
    )
    server = _Server(config, on_stop)
    try:
        await engine.start()
        batches = asyncio.ensure_future(service.batcher.run())
        batches.add_done_callback(lambda _: server.handle_exit(signal.SIGTERM, None) if not server.should_exit else None)
        host, port = listener.getsockname()[:2]
        ready(f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1")
        logger.info("ready on %s:%d, engine %s", host, port, engine.pid)
        await server.serve(sockets=[listener])
        batches.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await batches  # raises why the engine could not be kept running
    finally:
        await engine.stop()
        logger.info("stopped")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(f"{host}:{port}: {error.strerror or error}", "choose another --host or --port") from error


def _key(variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(f"the environment variable {variable} is not set", "set it to the key that clients will send")
    return key
