"""Throughput of the teacher's client on a real vLLM server whose KV cache overflows, with and without the server's own metrics.

    python -m bench.kv_cache [--blocks 64] [--requests 200] [--words 9] [--tokens 256] [--in-flight 128] [--rounds 3]

The server has the pocket teacher, a KV cache of `--blocks` blocks (of 128 tokens on CPU) and up to `--in-flight` sequences. Every question
has `--words` words and more, and every answer `--tokens` tokens, so each sequence needs more blocks than its prompt did. Runs of the two clients alternate; the ratio is that
of their medians. Preemptions are the server's count.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import urllib.request
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipeline.serving.server import ManagedServer
from pipeline.teacher.client import TeacherClient
from pipeline.teacher.request_body import TeacherRequest
from pipeline.teacher.server_load import metrics_url, read_load
from pocket.training.train_models import MODELS
from schemas.hosting import Endpoint, ServerConfig
from schemas.teacher import Transport


def requests(count: int, words: int, tokens: int, start: int) -> list[TeacherRequest]:
    fields = {"max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True, "temperature": 1.0}
    said = ["a", "red", "circle", "at", "the", "left", "of", "a", "blue", "square"]
    text = " ".join(said[at % len(said)] for at in range(words))
    texts = [f"query {start + n}: {text}" for n in range(count)]
    return [TeacherRequest(text, [{"role": "user", "content": text}], fields | {"seed": n}) for n, text in enumerate(texts)]


async def ask(endpoint: Endpoint, asked: list[TeacherRequest], in_flight: int, poll_s: float) -> int:
    transport = Transport(max_in_flight=in_flight, load_poll_s=poll_s)
    async with TeacherClient(transport.client((endpoint,))) as client:
        answers = await asyncio.gather(*(client.ask(request) for request in asked))
        assert all(answer.completion_tokens for answer in answers), answers[0].detail
        return client.stats().limit


def preemptions(endpoint: Endpoint) -> int:
    with urllib.request.urlopen(metrics_url(endpoint.url)) as answer:
        load = read_load(answer.read().decode())
    assert load is not None, "vLLM's metrics"
    return load.preemptions


def main(
    blocks: int = 64,
    count: Annotated[int, typer.Option("--requests")] = 200,
    words: Annotated[int, typer.Option(help="Of each question.")] = 9,
    tokens: Annotated[int, typer.Option(help="Of each answer.")] = 256,
    in_flight: int = 128,
    rounds: int = 3,
    poll_s: float = 0.5,
) -> None:
    """Prints a table."""
    config = ServerConfig(
        model=str(MODELS / "teacher"),
        device="cpu",
        dtype="float32",
        max_model_len=1024,
        max_pixels=None,
        max_num_seqs=in_flight,
        extra_args=("--num-gpu-blocks-override", str(blocks)),
    )
    results: dict[float, list[tuple[float, int, int]]] = {0.0: [], poll_s: []}
    with ManagedServer(config) as server:
        asyncio.run(ask(server.endpoint, requests(8, words, tokens, 0), 8, 0))
        for number in range(rounds):
            for way, runs in results.items():
                before, began = preemptions(server.endpoint), time.perf_counter()
                asked = requests(count, words, tokens, (1 + number) * 10_000 + int(way > 0) * 5_000)
                limit = asyncio.run(ask(server.endpoint, asked, in_flight, way))
                runs.append((count / (time.perf_counter() - began), preemptions(server.endpoint) - before, limit))
    base = statistics.median(rate for rate, _, _ in results[0.0])
    table = Table("client", "requests/s", "ratio", "preemptions", "limit at the end")
    for way, runs in results.items():
        rate = statistics.median(one[0] for one in runs)
        name = f"reads the load every {way:g} s" if way else "refusals and time-outs only"
        table.add_row(
            name,
            f"{rate:.2f}",
            f"{rate / base:.2f}",
            ", ".join(str(one[1]) for one in runs),
            ", ".join(str(one[2]) for one in runs),
        )
    Console().print(
        f"{count} requests of {words} words and {tokens} tokens, {blocks} blocks, up to {in_flight} in flight, {rounds} rounds"
    )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
