"""Servers under Ray: as many as the config says, or as fit on the GPUs of the machine or cluster; one on CPU.

Ray is embedded if none runs; with ``RAY_ADDRESS`` its cluster is used. Each
server lives in an actor that holds its GPUs; when the driver, the actor or the raylet dies, the supervisor ends the server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipeline.files.run_log import open_run_log
from pipeline.serving.environ import Carried, carried
from pipeline.serving.model_check import check_model
from pipeline.serving.placement import Demand
from pipeline.serving.ray_session import start_ray
from pipeline.serving.reserve import release, reserve
from pipeline.serving.server import ManagedServer
from pipeline.serving.weights import fetch_model
from schemas.errors import CotError
from schemas.hosting import Endpoint, ServerConfig

logger = logging.getLogger(__name__)

_ANSWER_S: Final = 60.0
_LOST: Final = "a server's Ray actor was lost (its node, or its memory?) and its server with it"


class ServerActor:
    """Holds one managed server on the node where Ray put it."""

    def __init__(self, config: ServerConfig, log: Path | None, environment: Carried) -> None:
        environment.set()
        self._config, self._log = config, log

    @cached_property
    def _server(self) -> ManagedServer:
        """Made by the first call, because Ray keeps no exception of an `__init__`, only a text."""
        if self._log is not None:
            open_run_log(self._log.with_name(f"{self._log.stem}-actor.log"))
        return ManagedServer(self._config, log=self._log)

    def node(self) -> str:
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def fetch(self) -> None:
        """Downloads the model's files to this node."""
        fetch_model(self._server.config)

    def start(self) -> Endpoint:
        """Starts the server. Returns its endpoint with an address that other nodes can reach."""
        endpoint = self._server.start()
        return endpoint.model_copy(update={"url": endpoint.url.replace("127.0.0.1", self._address())})

    def failure(self) -> str | None:
        """Why the server was given up, if it was. An actor whose server was never started is Ray's replacement of a lost
        one."""
        if self._server.pid is None:
            return _LOST
        return str(self._server.failure) if self._server.failure is not None else None

    def pid(self) -> int | None:
        return self._server.pid

    def revive(self) -> None:
        self._server.revive()

    def stop(self) -> None:
        self._server.stop()

    def _address(self) -> str:
        if self._server.config.host == "127.0.0.1":
            return "127.0.0.1"
        address: str = ray.util.get_node_ip_address()
        return address


class ServerPool:
    """The servers of one job."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        count: int | None = None,
        logs: Path | None = None,
        name: str = "teacher",
        held: Sequence[PlacementGroup | None] | None = None,
    ) -> None:
        """`count` goes before the config's; what servers print goes to ``logs/server-<n>.log``, their actors' logs beside it.

        held: places that `reserve` has found already, one a server, which are the pool's from now on.
        """
        check_model(config)
        start_ray()
        self.config = config
        if held is None:
            wanted = config if count is None else config.model_copy(update={"count": count})
            (held,) = reserve([Demand.of(name, wanted)], config.placement_timeout_s)
        self._held = list(held)
        self.count = len(self._held)
        logger.info("%d servers for %s: %s", self.count, name, config.model)
        gpus = config.tensor_parallel_size if config.device == "cuda" else 0
        several_nodes = len(ray.nodes()) > 1
        open_to = config.model_copy(update={"host": "0.0.0.0"}) if several_nodes else config  # noqa: S104 (other nodes ask it)
        remote = ray.remote(num_gpus=gpus, num_cpus=0 if gpus else 0.01, max_restarts=-1)(ServerActor)
        self.actors: list[Any] = [
            remote.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group) if group is not None else None).remote(
                open_to, logs / f"server-{number}.log" if logs is not None else None, carried()
            )
            for number, group in enumerate(self._held)
        ]

    def start(self, progress: Callable[[str], None] = lambda doing: None) -> tuple[Endpoint, ...]:
        """Fetches the model, starts all servers at once and waits for all of them. Raises the first failure.

        `progress` is told what is being done.
        """
        try:
            if not Path(self.config.model).exists():
                progress(f"downloading {self.config.model}, or finding it in the cache")
                nodes = ray.get([actor.node.remote() for actor in self.actors])
                ray.get([actor.fetch.remote() for actor in dict(zip(nodes, self.actors, strict=True)).values()])
            progress(f"vLLM loads {self.config.model}; this takes a while")
            return tuple(ray.get([actor.start.remote() for actor in self.actors]))
        except ray.exceptions.RayTaskError as error:
            self.stop()
            raise (error.cause if isinstance(error.cause, CotError) else error.as_instanceof_cause()) from None

    def failures(self) -> list[str]:
        """The failures of servers that were given up."""
        failures = []
        for reference in [actor.failure.remote() for actor in self.actors]:
            try:
                failure = ray.get(reference, timeout=_ANSWER_S)
            except ray.exceptions.RayError:  # the actor is gone, or waits for a node with room
                failure = _LOST
            failures += [failure] if failure is not None else []
        return failures

    def revive(self) -> None:
        """Restarts the servers that were given up, with a new count of restarts."""
        logger.warning("servers that were given up are started once more")
        ray.wait([actor.revive.remote() for actor in self.actors], num_returns=len(self.actors), timeout=_ANSWER_S)

    def stop(self) -> None:
        """Stops the servers and releases their GPUs. May be called again."""
        actors, self.actors = self.actors, []
        if actors:
            logger.info("stops %d servers", len(actors))
        if actors and ray.is_initialized():
            ray.wait([actor.stop.remote() for actor in actors], num_returns=len(actors), timeout=30)
            for actor in actors:
                ray.kill(actor)
        held, self._held = self._held, []
        release(held)


@contextmanager
def server_pool(config: ServerConfig, *, count: int | None = None, logs: Path | None = None) -> Iterator[tuple[Endpoint, ...]]:
    """The endpoints of a pool that lives as long as the context."""
    pool = ServerPool(config, count=count, logs=logs)
    try:
        yield pool.start()
    finally:
        pool.stop()
