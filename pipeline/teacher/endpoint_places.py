"""Assigns waiting requests to endpoints, in order.

Each request goes to the least loaded endpoint with room (see `concurrency_limit`).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque

from pipeline.teacher.concurrency_limit import Limiter
from schemas.errors import ConfigError
from schemas.hosting import Endpoint
from schemas.teacher import ClientConfig


class Server:
    """One endpoint with its limiter and its key."""

    def __init__(self, endpoint: Endpoint, config: ClientConfig) -> None:
        self.endpoint = endpoint
        self.url = f"{endpoint.url.rstrip('/')}/chat/completions"
        self.limiter = Limiter(float(config.start_in_flight), config.min_in_flight, config.max_in_flight)
        self.headers = {"Content-Type": "application/json"}
        self._key = ""
        if endpoint.api_key_env:
            self._key = os.environ.get(endpoint.api_key_env, "").strip()
            if not self._key:
                raise ConfigError(
                    f"the environment variable {endpoint.api_key_env} is not set",
                    f"set it to the key of {endpoint.url}",
                )
            self.headers["Authorization"] = f"Bearer {self._key}"

    def redacted(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text

    def __repr__(self) -> str:
        return f"Server({self.endpoint.url})"


class Places:
    """Places at the endpoints, for one event loop. `close` it at the end."""

    def __init__(self, config: ClientConfig) -> None:
        self.servers = [Server(endpoint, config) for endpoint in config.endpoints]
        self._waiting: deque[asyncio.Future[Server]] = deque()
        self._wake: asyncio.TimerHandle | None = None
        self._stopped_by: Exception | None = None

    @property
    def waiting(self) -> int:
        """Requests without a place."""
        return len(self._waiting)

    def close(self) -> None:
        if self._wake is not None:
            self._wake.cancel()

    def stop_sending(self, error: Exception) -> None:
        """Assigns no more places: waiting and later requests fail with this error."""
        self._stopped_by = error

    async def acquire(self) -> Server:
        """Waits for a place. Checked again afterwards: the answer that freed the place may be the reason to stop."""
        server = await self._place()
        if self._stopped_by is not None:
            self.release(server)
            raise self._stopped_by
        return server

    async def _place(self) -> Server:
        server = self._roomiest() if not self._waiting else None
        if server is not None:
            server.limiter.in_flight += 1
            return server
        future: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self.wake_later()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.release(future.result())  # the place arrived at the moment of cancellation
            raise

    def release(self, server: Server) -> None:
        server.limiter.in_flight -= 1
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting:
            if self._waiting[0].done():  # gave up waiting
                self._waiting.popleft()
                continue
            server = self._roomiest()
            if server is None:
                self.wake_later()
                return
            server.limiter.in_flight += 1
            self._waiting.popleft().set_result(server)

    def _roomiest(self) -> Server | None:
        now = time.monotonic()
        open_servers = [server for server in self.servers if server.limiter.has_room(now)]
        return min(open_servers, key=lambda server: server.limiter.load, default=None)

    def wake_later(self) -> None:
        """Hands out places at once if there is room, else when the next endpoint may be tried again.

        Otherwise requests are in flight, and each hands out places when it ends.
        """
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if not self._waiting:
            return
        now = time.monotonic()
        waits = [server.limiter.available_at - now + 0.001 for server in self.servers if server.limiter.available_at > now]
        if any(server.limiter.has_room(now) for server in self.servers):
            waits.append(0.0)  # it became available since the last look at the clock
        if waits:
            self._wake = asyncio.get_running_loop().call_later(min(waits), self._hand_out)
