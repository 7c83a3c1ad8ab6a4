"""A chat endpoint that fails on demand, for controlled failures only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Fault = Callable[[web.Request, int], Awaitable[web.StreamResponse | None]]
"""Gets the request and the number of earlier ones; returns a response, or None for the ordinary one."""


def completion(text: str = "fine", finish: str = "stop", **changes: Any) -> dict[str, Any]:
    return {
        "model": "teacher-as-served",
        "system_fingerprint": "fp",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 3},
    } | changes


class FaultServer:
    """The endpoint. It counts its requests; `fault` decides what fails, `delay_s` is the ordinary latency."""

    def __init__(self, metrics: Callable[[web.Request], Awaitable[web.Response]] | None = None) -> None:
        """metrics: answers GET /metrics."""
        self._metrics = metrics
        self.fault: Fault | None = None
        self.delay_s = 0.0
        self.asked = 0
        self.answered: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.in_flight = self.most_in_flight = 0
        self.capacity: int | None = None
        self.authorization: set[str] = set()
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self) -> None:
        app = web.Application(client_max_size=2**28)
        app.router.add_post("/v1/chat/completions", self._chat)
        if self._metrics is not None:
            app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True, backlog=4096)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stops at once: connections break, new ones are refused."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        number, self.asked = self.asked, self.asked + 1
        self.authorization.add(request.headers.get("Authorization", ""))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            body = json.loads(await request.read())
            self.bodies.append(body)
            if self.capacity is not None and self.in_flight > self.capacity:
                return web.json_response({"error": "too many"}, status=503)
            if self.fault is not None and (answer := await self.fault(request, number)) is not None:
                return answer
            await asyncio.sleep(self.delay_s)
            text = str(body["messages"][0]["content"])
            self.answered.append(text)
            return web.json_response(completion(text))
        finally:
            self.in_flight -= 1


@asynccontextmanager
async def running(
    metrics: Callable[[web.Request], Awaitable[web.Response]] | None = None,
) -> AsyncIterator[FaultServer]:
    server = FaultServer(metrics)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
