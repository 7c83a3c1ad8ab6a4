"""The servers of a build: reached, reused or started, for the teacher and, if it is another model, the verifier."""

from __future__ import annotations

import threading
from pathlib import Path

from pipeline.annotator import Endpoints
from pipeline.teacher.hosting.registry import running
from schemas.config import BuildConfig, TeacherConfig
from schemas.errors import CotError
from schemas.hosting import Endpoint, ServerConfig


def server_config(config: TeacherConfig, mbeir: Path) -> ServerConfig | None:
    """The settings to start a managed server with: images below the M-BEIR root may be read by path."""
    server = config.server
    if config.hosting != "managed" or server is None:
        return None
    if config.images == "path" and server.media_root is None:
        server = server.model_copy(update={"media_root": mbeir.resolve()})
    return server


class Teachers:
    """Starts what must be started in a thread of its own, so that the driver stays responsive."""

    def __init__(self, config: BuildConfig, logs: Path) -> None:
        self._config, self._logs = config, logs
        self._pools: list[object] = []
        self._thread: threading.Thread | None = None
        self._endpoints: Endpoints | None = None
        self._error: BaseException | None = None

    @property
    def begun(self) -> bool:
        return self._thread is not None

    @property
    def endpoints(self) -> Endpoints | None:
        """None until the servers answer. Raises why they do not come up."""
        if self._error is not None:
            raise self._error
        return self._endpoints

    def begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._start, name="start-teachers", daemon=True)
            self._thread.start()

    def failures(self) -> list[str]:
        """Servers that were given up."""
        return [failure for pool in self._pools for failure in pool.failures()]  # type: ignore[attr-defined]

    def stop(self) -> None:
        for pool in self._pools:
            pool.stop()  # type: ignore[attr-defined]
        self._pools.clear()

    def _start(self) -> None:
        try:
            teacher = self._hosted(self._config.teacher, "teacher")
            verifier = self._hosted(self._config.verifier, "verifier") if self._config.verifier is not None else teacher
            self._endpoints = Endpoints(teacher, verifier)
        except CotError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001 (carried to the driver's thread)
            self._error = error

    def _hosted(self, config: TeacherConfig, name: str) -> tuple[Endpoint, ...]:
        server = server_config(config, self._config.mbeir)
        if server is None:
            return config.endpoints
        if config.reuse and (found := running(server)) is not None:
            return (found,)
        from pipeline.teacher.hosting.pool import ServerPool  # noqa: PLC0415 (Ray)

        pool = ServerPool(server, logs=self._logs / name)
        self._pools.append(pool)
        return pool.start()
