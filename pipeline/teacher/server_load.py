"""What a vLLM server's own metrics say about its load, read now and then while it is asked.

A server whose KV cache is full preempts requests: what they have written is computed again later. No answer shows it, so a
client that goes by refusals and time-outs sends more and more. Servers without these metrics are asked once.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import aiohttp

from pipeline.teacher.concurrency_limit import Limiter

_TIMEOUT_S: Final = 5.0
_LINE: Final = re.compile(
    r"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|num_preemptions_total)(?:\{[^}]*\})? (\S+)$",
    re.MULTILINE,
)


class ServerLoad(NamedTuple):
    """Sums over a server's engines; `cache` is the fullest one's."""

    running: int
    waiting: int
    cache: float
    """Share of the KV cache in use."""
    preemptions: int
    """Since the server started."""


def read_load(text: str) -> ServerLoad | None:
    """From the text of /metrics; None if it is not vLLM's."""
    values: dict[str, list[float]] = {}
    for name, value in _LINE.findall(text):
        values.setdefault(name, []).append(float(value))
    if "num_requests_running" not in values or "kv_cache_usage_perc" not in values:
        return None
    return ServerLoad(
        running=int(sum(values["num_requests_running"])),
        waiting=int(sum(values.get("num_requests_waiting", ()))),
        cache=max(values["kv_cache_usage_perc"]),
        preemptions=int(sum(values.get("num_preemptions_total", ()))),
    )


def metrics_url(url: str) -> str:
    """Of a server whose base URL with the version is `url`."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/").removesuffix("/v1") + "/metrics"))


async def follow_load(session: aiohttp.ClientSession, url: str, limiter: Limiter, poll_s: float) -> None:
    """Tells the limiter about the server's load every `poll_s` seconds while requests are in flight.

    Ends if the server answers without vLLM's metrics. One that does not answer is asked again: it may be starting.
    """
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    while True:
        await asyncio.sleep(poll_s)
        if not limiter.in_flight:
            continue
        try:
            async with session.get(metrics_url(url), timeout=timeout) as answer:
                load = read_load(await answer.text()) if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError):
            continue
        if load is None:
            return
        limiter.reported(load.running, load.waiting, load.cache, load.preemptions)
