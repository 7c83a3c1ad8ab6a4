"""The servers of a build: reached, reused or started, for the teacher and, if it is another model, the verifier."""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.serving.endpoint_check import check_endpoints
from pipeline.serving.model_check import check_model
from pipeline.serving.preflight import Who
from pipeline.serving.registry import running
from schemas.config import BuildConfig
from schemas.errors import CotError
from schemas.hosting import Endpoint, ServerConfig
from schemas.teacher_config import TeacherConfig

if TYPE_CHECKING:
    from pipeline.serving.server_pool import ServerPool  # imports Ray


def server_config(config: TeacherConfig, mbeir: Path) -> ServerConfig | None:
    """The settings to start a managed server with: images below the M-BEIR root may be read by path."""
    server = config.server
    if config.hosting != "managed" or server is None:
        return None
    if config.images == "path" and server.media_root is None:
        server = server.model_copy(update={"media_root": mbeir.resolve()})
    return server


class Teachers:
    """Starts the servers in a separate thread, so that the driver stays responsive."""

    def __init__(self, config: BuildConfig, logs: Path, ledger: str) -> None:
        self._config, self._logs, self._ledger = config, logs, ledger
        self._pools: list[ServerPool] = []
        self._thread: threading.Thread | None = None
        self._endpoints: Endpoints | None = None
        self._error: BaseException | None = None
        self.doing = ""
        """What it is waiting for, in words."""

    @property
    def begun(self) -> bool:
        return self._thread is not None

    @property
    def endpoints(self) -> Endpoints | None:
        """None until the servers answer. Raises the error if they fail to start."""
        if self._error is not None:
            raise self._error
        return self._endpoints

    def begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._start, name="start-teachers", daemon=True)
            self._thread.start()

    def wait(self) -> Endpoints:
        """Starts the servers and waits until they answer. Raises the error if they fail to start."""
        self.begin()
        assert self._thread is not None
        self._thread.join()
        endpoints = self.endpoints
        assert endpoints is not None
        return endpoints

    def failures(self) -> list[str]:
        """The failures of servers that were given up."""
        return [failure for pool in self._pools for failure in pool.failures()]

    def revive(self) -> None:
        """Starts the servers that were given up again."""
        for pool in self._pools:
            pool.revive()

    def stop(self) -> None:
        for pool in self._pools:
            pool.stop()
        self._pools.clear()

    def _start(self) -> None:
        try:
            configs: dict[Who, TeacherConfig] = {"teacher": self._config.teacher}
            if self._config.verifier is not None:
                configs["verifier"] = self._config.verifier
            self._check(configs)
            endpoints = self._hosted(configs)
            self._endpoints = Endpoints(endpoints["teacher"], endpoints.get("verifier", endpoints["teacher"]))
        except CotError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001 (carried to the driver's thread)
            self._error = error

    def _check(self, configs: dict[Who, TeacherConfig]) -> None:
        """Sends external endpoints a few of the build's requests. Raises ConfigError for failures that every query would
        meet."""
        external = {name: config for name, config in configs.items() if config.hosting == "external"}
        if external:
            self.doing = "asking the endpoints what they can do"
            check_endpoints(self._config, external, self._ledger)

    def _hosted(self, configs: dict[Who, TeacherConfig]) -> dict[Who, tuple[Endpoint, ...]]:
        """Endpoints by name. Servers that already run are used; for the others GPUs are reserved together, then they start in
        parallel."""
        endpoints: dict[Who, tuple[Endpoint, ...]] = {}
        managed: dict[Who, ServerConfig] = {}
        for name, config in configs.items():
            server = server_config(config, self._config.mbeir)
            if server is None:
                endpoints[name] = config.endpoints
            elif config.reuse and (endpoint := running(server)) is not None:
                endpoints[name] = (endpoint,)
            else:
                managed[name] = server
        if not managed:
            return endpoints
        from pipeline.serving.placement import Demand  # noqa: PLC0415 (Ray)
        from pipeline.serving.ray_session import start_ray  # noqa: PLC0415
        from pipeline.serving.reserve import reserve  # noqa: PLC0415
        from pipeline.serving.server_pool import ServerPool  # noqa: PLC0415

        for server in managed.values():
            check_model(server)
        start_ray()
        self.doing = "waiting for GPUs"
        held = reserve(
            [Demand.of(name, server) for name, server in managed.items()],
            max(server.placement_timeout_s for server in managed.values()),
        )
        pools = {
            name: ServerPool(server, logs=self._logs / name, name=name, held=places)
            for (name, server), places in zip(managed.items(), held, strict=True)
        }
        self._pools += pools.values()
        with ThreadPoolExecutor(len(pools)) as threads:
            started = {name: threads.submit(pool.start, self._tell) for name, pool in pools.items()}
            done, _ = wait(started.values(), return_when=FIRST_EXCEPTION)
            for finished in done:
                if (error := finished.exception()) is not None:
                    self.stop()  # otherwise the error would wait for the others to load
                    raise error
        return endpoints | {name: future.result() for name, future in started.items()}

    def _tell(self, doing: str) -> None:
        self.doing = doing


@dataclass(frozen=True)
class Endpoints:
    """Where the teacher and the verifier answer (often the same)."""

    teacher: tuple[Endpoint, ...]
    verifier: tuple[Endpoint, ...]
