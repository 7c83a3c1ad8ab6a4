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
    """Starts what must be started in a thread of its own, so that the driver stays responsive."""

    def __init__(self, config: BuildConfig, logs: Path, ledger: str) -> None:
        self._config, self._logs, self._ledger = config, logs, ledger
        self._pools: list[ServerPool] = []
        self._thread: threading.Thread | None = None
        self._endpoints: Endpoints | None = None
        self._error: BaseException | None = None
        self.doing = ""
        """What is being waited for, in words."""

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

    def wait(self) -> Endpoints:
        """Begins, and waits until the servers answer. Raises why they do not come up."""
        self.begin()
        assert self._thread is not None
        self._thread.join()
        found = self.endpoints
        assert found is not None
        return found

    def failures(self) -> list[str]:
        """Servers that were given up."""
        return [failure for pool in self._pools for failure in pool.failures()]

    def revive(self) -> None:
        """Starts the servers that were given up once more."""
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
            found = self._hosted(configs)
            self._endpoints = Endpoints(found["teacher"], found.get("verifier", found["teacher"]))
        except CotError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001 (carried to the driver's thread)
            self._error = error

    def _check(self, configs: dict[Who, TeacherConfig]) -> None:
        """Asks external endpoints a few of the work's questions. Raises ConfigError for what no query would survive."""
        external = {name: config for name, config in configs.items() if config.hosting == "external"}
        if external:
            self.doing = "asking the endpoints what they can do"
            check_endpoints(self._config, external, self._ledger)

    def _hosted(self, configs: dict[Who, TeacherConfig]) -> dict[Who, tuple[Endpoint, ...]]:
        """Reached or reused where they run; the others are given their GPUs together, then started side by side."""
        found: dict[Who, tuple[Endpoint, ...]] = {}
        managed: dict[Who, ServerConfig] = {}
        for name, config in configs.items():
            server = server_config(config, self._config.mbeir)
            if server is None:
                found[name] = config.endpoints
            elif config.reuse and (one := running(server)) is not None:
                found[name] = (one,)
            else:
                managed[name] = server
        if not managed:
            return found
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
                    self.stop()  # the others would load for minutes before anybody heard of it
                    raise error
        return found | {name: endpoints.result() for name, endpoints in started.items()}

    def _tell(self, doing: str) -> None:
        self.doing = doing


@dataclass(frozen=True)
class Endpoints:
    """Where the teacher and the verifier answer (often the same)."""

    teacher: tuple[Endpoint, ...]
    verifier: tuple[Endpoint, ...]
