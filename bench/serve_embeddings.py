"""Latency of the embedding service at rising rates, and its throughput relative to the bare embedder in the same run.

    python -m bench.serve_embeddings RUN [--engines transformers,vllm] [--think-rate 0.28] [--shares 0.25,0.5,1.0] [--seconds 20]

For each engine a service, and the bare embedder in this process; they alternate. Both embed the same queries with the same
routes: `--think-rate` of them reason, whatever the run's own rate is. The bare embedder gets all of them at once. The service is
asked by `--clients` clients that each wait for their answer (its capacity), then by arrivals at random moments (Poisson) at
shares of that capacity. With `--export` (of the same run, by `mbeir-cot merge`) a bare vLLM server that only pools gets the queries that
bypass, from the same clients, and so does the service with vLLM's engine. Latencies count from the moment at which a request was due, so a service that falls behind cannot hide
it. A refusal (429) is counted, not timed. Everything shares one machine.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import aiohttp
import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from pipeline.serving.server import ManagedServer
from schemas.errors import ConfigError
from trainer import TraceEmbedder
from trainer.embedding.trace_embedder import DEFAULT_INSTRUCTION
from trainer.release.merge import POOLING, chat_request, plan_servers, server_config

console = Console()
NOUNS = ("town", "river", "red cube", "tall tower", "small ship", "garden", "black dress", "old map")
PLACES = ("in the north", "by the sea", "near a lake", "with a bridge", "at night", "of the king")


class Asked(NamedTuple):
    text: str
    route: str


def queries(count: int, think_rate: float) -> list[Asked]:
    rng = random.Random(0)
    return [
        Asked(f"a {rng.choice(NOUNS)} {rng.choice(PLACES)}, number {n}", "always" if rng.random() < think_rate else "never")
        for n in range(count)
    ]


@contextmanager
def service(run: Path, overrides: list[str]) -> Iterator[tuple[str, psutil.Process]]:
    command = [sys.executable, "-m", "mbeir_cot", "serve-embeddings", str(run), "--port", "0", "--name", "trace"]
    process = subprocess.Popen(
        [*command, *(word for override in overrides for word in ("--set", override))],
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=os.environ | {"COLUMNS": "200"},
    )
    assert process.stdout is not None
    ready = next((found for line in process.stdout if (found := re.search(r"is served at (\S+)", line))), None)
    try:
        assert ready is not None, "the service did not start"
        yield ready[1], psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> int:
    async with session.post(f"{url}/embeddings", json=body) as answer:
        await answer.read()
        return answer.status


def request(query: Asked) -> dict[str, Any]:
    return {"input": query.text, "route": query.route, "encoding_format": "base64"}


async def closed(url: str, bodies: Iterable[dict[str, Any]], clients: int) -> float:
    """Requests per second of clients that each wait for their answer."""
    waiting, answered = iter(bodies), 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client() -> None:
            nonlocal answered
            for body in waiting:
                assert await ask(session, url, body) == 200
                answered += 1

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return answered / (time.perf_counter() - began)


async def opened(url: str, asked: list[Asked], rate: float) -> tuple[list[float], Counter[int]]:
    """(seconds from when each answered request was due, statuses)."""
    rng = random.Random(1)
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def arrive(due: float, query: Asked) -> None:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            status = await ask(session, url, request(query))
            statuses[status] += 1
            if status == 200:
                latencies.append(time.perf_counter() - due)

        due, arrivals = time.perf_counter() + 0.1, []
        for query in asked:
            due += rng.expovariate(rate)
            arrivals.append(asyncio.ensure_future(arrive(due, query)))
        await asyncio.gather(*arrivals)
    return latencies, statuses


class Cpu(NamedTuple):
    """Milliseconds of CPU: what embeds, what speaks HTTP, and the clients, where the bare embedder is too."""

    engine: float
    http: float
    clients: float

    @classmethod
    def used(cls, process: psutil.Process) -> Cpu:
        """So far, by a service, its engine and this process."""
        engine = sum(1e3 * sum(one.cpu_times()[:2]) for one in process.children(recursive=True))
        return cls(engine, 1e3 * sum(process.cpu_times()[:2]), 1e3 * time.process_time())

    def since(self, before: Cpu, queries: int) -> Cpu:
        """For each of so many queries."""
        return Cpu(*((now - then) / queries for now, then in zip(self, before, strict=True)))


def bare(embedder: TraceEmbedder, asked: list[Asked]) -> float:
    """Queries per second of the embedder alone, given each route's queries at once."""
    began = time.perf_counter()
    for name, route in (("never", "always-direct"), ("always", "always-reason")):
        embedder.embed_queries([query.text for query in asked if query.route == name], route=route)  # type: ignore[arg-type]
    return len(asked) / (time.perf_counter() - began)


def main(
    run: Path,
    engines: str = "transformers,vllm",
    think_rate: float = 0.28,
    shares: str = "0.25,0.5,0.75,1.0,1.5",
    seconds: float = 20.0,
    clients: int = 64,
    count: Annotated[int, typer.Option("--queries", help="For the comparison with the bare embedder.")] = 512,
    rounds: int = 2,
    export: Annotated[Path | None, typer.Option(help="Of RUN: compares with a bare vLLM server of it too.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set")] = None,
) -> None:
    """Prints throughput and a table of latencies for each engine."""
    if export is not None:
        compare_servers(run, export, queries(count, 0.0), given=list(overrides or ()), clients=clients, rounds=rounds)
    for engine in filter(None, engines.split(",")):
        given = [*(overrides or ()), f"adaptive.engine={engine}"]
        console.print(f"[bold]{engine}")
        measure(
            run,
            given,
            queries(count, think_rate),
            think_rate=think_rate,
            shares=[float(one) for one in shares.split(",") if one],
            seconds=seconds,
            clients=clients,
            rounds=rounds,
        )


def compare_servers(run: Path, export: Path, asked: list[Asked], *, given: list[str], clients: int, rounds: int) -> None:
    """The service and vLLM's own server, with the same queries, from the same clients. The two alternate; each rests meanwhile."""
    embedder = TraceEmbedder.load(run, overrides=given, engine=None)
    sequences = [embedder.encode_query(query.text, query.text, DEFAULT_INSTRUCTION) for query in asked]
    plan = plan_servers(embedder.embedder)
    if plan.device.type != "cpu":
        raise ConfigError("--export compares two servers that share one machine", "run it on CPU")
    bodies = [chat_request(one, plan.ending) | {"encoding_format": "base64"} for one in sequences]
    embedder.close()
    bare_server = ManagedServer(server_config(plan, export, *POOLING).model_copy(update={"max_num_seqs": 256}))
    ratios = []
    with service(run, [*given, "adaptive.engine=vllm"]) as (url, _), bare_server as server:
        for number in range(rounds + 1):
            ours = asyncio.run(closed(url, map(request, asked), clients))
            theirs = asyncio.run(closed(server.endpoint.url, bodies, clients))
            console.print(
                f"bypass: service {ours:,.1f} requests/s, bare vLLM server {theirs:,.1f}{'' if number else ' (warming)'}"
            )
            ratios.append(ours / theirs)
    console.print(f"{np.median(ratios[1:]):.2f} of the bare vLLM server with {clients} clients")


def measure(
    run: Path,
    given: list[str],
    asked: list[Asked],
    *,
    think_rate: float,
    shares: list[float],
    seconds: float,
    clients: int,
    rounds: int,
) -> None:
    embedder = TraceEmbedder.load(run, overrides=given, engine=None)
    rates: dict[str, list[float]] = {"bare": [], "service": []}
    with service(run, given) as (url, process):
        asyncio.run(closed(url, map(request, asked[:64]), clients))  # warm
        bare(embedder, asked[:64])
        for _ in range(rounds):
            start = Cpu.used(process)
            rates["bare"].append(bare(embedder, asked))
            alone = Cpu.used(process)
            rates["service"].append(asyncio.run(closed(url, map(request, asked), clients)))
            served = Cpu.used(process).since(alone, len(asked))
            console.print(
                f"bare {rates['bare'][-1]:,.1f} queries/s, service {rates['service'][-1]:,.1f}; CPU ms a query: "
                f"bare {alone.since(start, len(asked)).clients:.1f}, service {served.engine:.1f} (its engine), "
                f"{served.http:.1f} (HTTP), {served.clients:.1f} (clients)"
            )
        capacity = float(np.median(rates["service"]))
        ratio = float(np.median([one / other for one, other in zip(rates["service"], rates["bare"], strict=True)]))
        console.print(
            f"{capacity:,.1f} queries/s with {clients} clients, {ratio:.2f} of the bare embedder "
            f"({', '.join(f'{one:,.1f}' for one in rates['bare'])})"
        )
        table = Table("share of capacity", "requests/s", "p50 ms", "p99 ms", "answered", "refused (429)", "other")
        for share in shares:
            rate = share * capacity
            latencies, statuses = asyncio.run(opened(url, queries(max(int(rate * seconds), 20), think_rate), rate))
            row: list[Any] = [f"{share:g}", f"{rate:,.1f}"]
            row += [f"{1e3 * np.percentile(latencies or [0], q):,.0f}" for q in (50, 99)]
            table.add_row(*row, str(statuses.pop(200, 0)), str(statuses.pop(429, 0)), str(dict(statuses) or ""))
    embedder.close()
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
