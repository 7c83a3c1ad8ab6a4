"""Cost of the teacher's client, compared with a bare aiohttp loop that sends the same requests to the same server in one run.

    python bench/client.py [--requests 5000] [--in-flight 256]

The server answers instantly (or after 200 ms) in its own process; client and server each have one core if the machine has two.
Runs of client and bare loop alternate; the ratio is that of their medians. The bare loop is the upper bound: it only sends and
receives.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Awaitable, Callable
from multiprocessing.synchronize import Event
from typing import Annotated

import aiohttp
import typer
from aiohttp import web
from rich.console import Console
from rich.table import Table

from pipeline.teacher.client import TeacherClient
from pipeline.teacher.request_body import TeacherRequest, request_body
from schemas.hosting import Endpoint
from schemas.teacher import Transport

ANSWER = (
    b'{"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"' + b"word " * 60 + b'"},'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":900,"completion_tokens":60}}'
)
PROMPT = "A query with its instruction. " * 40


def serve(port: int, delay: float, ready: Event, cores: list[int]) -> None:
    pin(cores)

    async def chat(request: web.Request) -> web.Response:
        await request.read()
        if delay:
            await asyncio.sleep(delay)
        return web.Response(body=ANSWER, content_type="application/json")

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
        ready.set()
        await asyncio.Event().wait()

    asyncio.run(run())


def pin(cores: list[int]) -> None:
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setaffinity(0, cores)


def requests(count: int) -> list[TeacherRequest]:
    parts = [{"type": "text", "text": PROMPT}, {"type": "image_url", "image_url": {"url": "file:///data/image.jpg"}}]
    return [TeacherRequest(str(n), [{"role": "user", "content": parts}], {"seed": n, "max_tokens": 512}) for n in range(count)]


async def bare(url: str, asked: list[TeacherRequest], in_flight: int) -> None:
    """Sends the requests from workers that each wait for an answer before the next request."""
    waiting = iter(asked)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def worker() -> None:
            for request in waiting:
                async with session.post(
                    f"{url}/chat/completions", data=request_body(request, "m"), headers={"Content-Type": "application/json"}
                ) as response:
                    await response.read()

        await asyncio.gather(*(worker() for _ in range(in_flight)))


async def ours(url: str, asked: list[TeacherRequest], in_flight: int) -> None:
    transport = Transport(start_in_flight=in_flight, max_in_flight=in_flight)
    async with TeacherClient(transport.client((Endpoint(url=url, model="m"),))) as client:
        answers = await asyncio.gather(*(client.ask(request) for request in asked))
    assert all(answer.ok for answer in answers)


def timed(
    run: Callable[[str, list[TeacherRequest], int], Awaitable[None]], url: str, count: int, in_flight: int
) -> tuple[float, float]:
    """Returns (requests/s, CPU ms of this process per request)."""
    asked = requests(count)
    cpu, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    asyncio.run(run(url, asked, in_flight))  # type: ignore[arg-type]
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime
    return count / took, used / count * 1000


def main(
    count: Annotated[int, typer.Option("--requests")] = 5000,
    in_flight: int = 256,
    rounds: int = 3,
) -> None:
    """Prints rates, their ratio and the CPU time per request."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    pin(cores[:1])
    table = Table("latency", "client", "requests/s", "ratio to the bare loop", "CPU ms/request")
    for number, delay in enumerate((0.0, 0.2)):
        port, ready = 18_400 + number, multiprocessing.Event()
        server = multiprocessing.Process(target=serve, args=(port, delay, ready, cores[-1:]), daemon=True)
        server.start()
        ready.wait(20)
        url = f"http://127.0.0.1:{port}/v1"
        results: dict[str, list[tuple[float, float]]] = {"bare": [], "ours": []}
        for _ in range(rounds):
            results["bare"].append(timed(bare, url, count, in_flight))
            results["ours"].append(timed(ours, url, count, in_flight))
        base = statistics.median(rate for rate, _ in results["bare"])
        for name, runs in results.items():
            rate, cpu = statistics.median(r for r, _ in runs), statistics.median(c for _, c in runs)
            table.add_row(f"{delay * 1000:.0f} ms", name, f"{rate:,.0f}", f"{rate / base:.2f}", f"{cpu:.2f}")
        server.terminate()
        server.join()
    Console().print(table)
    Console().print(f"{count:,} requests, {in_flight} in flight; at 200 ms the ceiling is {in_flight / 0.2:,.0f} requests/s")


if __name__ == "__main__":
    typer.run(main)
