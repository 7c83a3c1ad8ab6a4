"""One managed server: start, wait, watch, restart, stop."""

from __future__ import annotations

import atexit
import logging
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pipeline.serving.model_check import check_model
from pipeline.serving.proxy_bypass import health
from pipeline.serving.vllm_command import command, environment
from schemas.errors import CotError
from schemas.hosting import Endpoint, ServerConfig

logger = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.25
_LOOK_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 12.0
_TAIL_LINES: Final = 25
_SERVES: Final = re.compile(rb"Application startup complete|Uvicorn running on")
_SERVES_SECONDS: Final = 30.0
"""How long a server that reports itself ready may be unreachable."""
_BACKOFF_SECONDS: Final = (1.0, 5.0, 20.0, 60.0)

_CAUSES: Final = (
    # pattern in the log, cause, remedy
    (r"No space left on device", "the disk is full", "free space in the model and temporary directories"),
    (r"address already in use", "the port is taken", "leave `port` unset for a free one"),
    (r"CUDA out of memory|OutOfMemoryError", "the GPU has too little memory", "raise tensor_parallel_size"),
    (r"No available memory for the cache blocks|KV cache .* larger than", "no room for the KV cache", "lower max_model_len"),
    (r"Model architectures .* (?:are not supported|failed)", "vLLM does not know this architecture", "use another model"),
    (r"Repository Not Found|is not a local folder|LocalEntryNotFound", "the model is not there", "check `model`"),
    (r"trust_remote_code", "the model wants to run its own code", "read it, then set trust_remote_code"),
    (r"max_model_len .* is greater than", "max_model_len is beyond the model", "lower max_model_len"),
    (r"No CUDA GPUs are available|Failed to infer device type", "no GPU is visible", "set device: cpu"),
)


class HostingError(CotError):
    """A server that does not start or keeps dying."""


class ManagedServer:
    """A vLLM server that runs as a child process.

    Use it as a context manager. If this process is killed, the server ends within seconds: see `supervise`.
    """

    def __init__(self, config: ServerConfig, *, log: Path | None = None) -> None:
        self.config = config
        if log is None:
            log = Path(tempfile.mkdtemp(prefix="mbeir-cot-server-")) / "server.log"
        self.log = log
        self.restarts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._log_from = 0
        self._stopped = threading.Event()
        self._launching = threading.Lock()  # so that no server is started after `stop`
        self._watcher: threading.Thread | None = None
        self.failure: HostingError | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(url=f"http://127.0.0.1:{self._port}/v1", model=self.config.served_name)

    @property
    def pid(self) -> int | None:
        """Process id of the supervisor, which leads the server's process group."""
        return self._process.pid if self._process is not None else None

    def start(self, progress: Callable[[float, str], None] = lambda seconds, line: None) -> Endpoint:
        """Starts the server and waits until it is healthy.

        `progress` gets the seconds so far and the log's last line. Raises ConfigError for problems visible in the
        model's files, HostingError with the cause first if the server fails or takes longer than `startup_timeout_s`.
        """
        check_model(self.config)
        self._launch()
        atexit.register(self.stop)
        began = time.monotonic()
        self._await_health(progress)
        logger.info("%s is ready at %s after %.0f s", self.config.model, self.endpoint.url, time.monotonic() - began)
        self._begin_watching(self.config.unresponsive_timeout_s)
        return self.endpoint

    def revive(self) -> None:
        """Starts a server that was given up again, with a new count of restarts. Does nothing for others."""
        if self.failure is None:
            return
        with self._launching:
            if self._stopped.is_set():
                return
            self.failure, self.restarts = None, 0
            self._launch()
        self._begin_watching(self.config.startup_timeout_s)

    def _begin_watching(self, allowed: float) -> None:
        self._watcher = threading.Thread(target=self._watch, args=(allowed,), daemon=True, name="watch-server")
        self._watcher.start()

    def healthy(self) -> bool:
        return self._health() is None

    def stop(self) -> None:
        """Stops the server and all its processes. May be called again."""
        self._stopped.set()
        with self._launching:
            process, self._process = self._process, None
        atexit.unregister(self.stop)
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                _kill_group(process.pid)
                process.wait()
        _kill_group(process.pid)

    def _health(self) -> str | None:
        return health(f"http://127.0.0.1:{self._port}/health")

    def _launch(self) -> None:
        """Starts the process. A restarted server gets the same port, so that clients find it."""
        if not self._port:
            if self.config.port and not _is_free(self.config.port):
                raise HostingError(f"port {self.config.port} is taken by another program", "leave `port` unset for a free one")
            self._port = self.config.port or _free_port()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._log_from = log.tell()
            logger.info("starts %s on port %d; it prints to %s", self.config.model, self._port, self.log)
            self._process = subprocess.Popen(
                command(self.config, self._port, os.getpid()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | environment(self.config),
                start_new_session=True,
            )

    def _await_health(self, progress: Callable[[float, str], None]) -> None:
        began, serves_since = time.monotonic(), None
        while (ill := self._health()) is not None:
            process = self._process
            elapsed = time.monotonic() - began
            if process is None or self._stopped.is_set():
                raise HostingError("the server was stopped while it started", "")
            if process.poll() is not None:
                raise self._explained("the teacher's server ended while it started")
            if elapsed > self.config.startup_timeout_s:
                error = self._explained(f"the teacher's server was not ready after {self.config.startup_timeout_s:.0f} s")
                self.stop()
                raise error
            if ill.startswith("HTTP") or not self._says_it_serves():
                serves_since = None
            elif elapsed - (serves_since := elapsed if serves_since is None else serves_since) > _SERVES_SECONDS:
                self.stop()
                raise HostingError(
                    f"the teacher's server says that it serves, but 127.0.0.1:{self._port} cannot be reached: {ill}\n"
                    f"  its log: {self.log}",
                    "look for what stands between (a firewall, a container's network, --host or --port in extra_args)",
                )
            progress(elapsed, self._last_line())
            time.sleep(_POLL_SECONDS)

    def _watch(self, allowed: float) -> None:
        """Starts the server again when it has died, or has been silent for too long (first `allowed` seconds)."""
        heard = looked = time.monotonic()
        while not self._stopped.wait(_POLL_SECONDS):
            process = self._process
            if process is None:
                continue
            what = "died"
            if process.poll() is None:
                now = time.monotonic()
                if now - looked < _LOOK_SECONDS:
                    continue
                looked = now
                if self.healthy():
                    heard, allowed = now, self.config.unresponsive_timeout_s
                    continue
                if now - heard < allowed:
                    continue
                what = f"was silent for {allowed:.0f} s"
            _kill_group(process.pid)
            process.wait()
            if self.restarts >= self.config.restarts:
                self.failure = self._explained(f"the teacher's server {what} again after {self.restarts} restarts")
                logger.error("%s", self.failure)
                return
            if self._stopped.wait(_BACKOFF_SECONDS[min(self.restarts, len(_BACKOFF_SECONDS) - 1)]):
                return
            with self._launching:
                if self._stopped.is_set():
                    return
                self.restarts += 1
                logger.warning("the server %s: restart %d of %d", what, self.restarts, self.config.restarts)
                self._launch()
            heard, allowed = time.monotonic(), self.config.startup_timeout_s

    def _says_it_serves(self) -> bool:
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(max(self._log_from, self.log.stat().st_size - 64_000))
            return _SERVES.search(file.read()) is not None
        return False

    def _last_line(self) -> str:
        lines = self._tail(3)
        return lines[-1] if lines else ""

    def _tail(self, count: int) -> list[str]:
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 64_000))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return []
        return [line for line in text.splitlines() if line.strip()][-count:]

    def _explained(self, what: str) -> HostingError:
        """The failure with its cause first, then the end of the server's own log."""
        lines = self._tail(400)
        text = "\n".join(lines)
        known = next(((cause, remedy) for pattern, cause, remedy in _CAUSES if re.search(pattern, text, re.IGNORECASE)), None)
        raised = [line.strip() for line in lines if re.search(r"\b[A-Z]\w*(?:Error|Exception)\b: ", line)]
        cause, remedy = known or (raised[-1] if raised else "its log does not say why", "see the server's log")
        tail = "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:])
        return HostingError(f"{what}: {cause}\n  the end of {self.log}:\n{tail}", remedy)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
