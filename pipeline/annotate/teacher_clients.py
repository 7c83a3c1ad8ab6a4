"""The clients of a worker, created on first use, once the driver has sent the servers' addresses."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from pipeline.serving.teacher_servers import Endpoints
from pipeline.teacher.client import TeacherClient
from schemas.config import BuildConfig
from schemas.errors import InputError

logger = logging.getLogger(__name__)

_IN_FLIGHT: Final = ("start_in_flight", "min_in_flight", "max_in_flight")


class TeacherClients:
    """Belongs to one event loop. alone: each client has at most one request in flight."""

    def __init__(self, config: BuildConfig, *, alone: bool) -> None:
        self._config, self._alone = config, alone
        self._endpoints: asyncio.Future[Endpoints] | None = None
        self._clients: dict[str, TeacherClient] = {}
        self._connecting = asyncio.Lock()

    @property
    def connected(self) -> bool:
        return self._endpoints is not None and self._endpoints.done()

    def made(self) -> list[TeacherClient]:
        return list(self._clients.values())

    def connect(self, endpoints: Endpoints) -> None:
        future = self._endpoint_future()
        if not future.done():
            future.set_result(endpoints)

    async def get(self, who: str) -> TeacherClient:
        """The teacher's or the verifier's client; waits until there are servers."""
        if who in self._clients:
            return self._clients[who]
        endpoints = await asyncio.shield(self._endpoint_future())
        async with self._connecting:
            if who not in self._clients:
                is_verifier = who == "verifier"
                config = self._config.verifier if is_verifier and self._config.verifier is not None else self._config.teacher
                servers = endpoints.verifier if is_verifier else endpoints.teacher
                if not servers:
                    raise InputError(f"the {who} has no endpoint", "check the config")
                transport = config.transport
                if self._alone:
                    transport = transport.model_copy(update=dict.fromkeys(_IN_FLIGHT, 1))
                client = TeacherClient(transport.client(servers), ours=config.hosting == "managed")
                self._clients[who] = await client.__aenter__()
                logger.info("asks the %s at %s", who, ", ".join(endpoint.url for endpoint in servers))
        return self._clients[who]

    def stop_sending(self, error: Exception) -> None:
        """Sends no more requests: those that wait, also for servers, fail with this error."""
        for client in self._clients.values():
            client.stop_sending(error)
        future = self._endpoint_future()
        if not future.done():
            future.set_exception(error)
            future.exception()  # marks it as retrieved, in case nothing waits for it

    async def close(self) -> None:
        for client in self._clients.values():
            await client.__aexit__(None, None, None)
        self._clients.clear()

    def _endpoint_future(self) -> asyncio.Future[Endpoints]:
        if self._endpoints is None:
            self._endpoints = asyncio.get_running_loop().create_future()
        return self._endpoints
