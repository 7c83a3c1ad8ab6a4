"""Speed of the pocket teacher on a real vLLM server: time to the first answer, requests/s and tokens/s of each task.

    python bench/teacher.py [configs/pocket.yaml] [--requests 300] [--in-flight 64]

The client is compared with a bare loop that sends the same requests to the same server. The two alternate, so that the server's
caches treat both alike.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from typing import Annotated

import aiohttp
import typer
from rich.console import Console
from rich.table import Table

from pipeline.config import load_config
from pipeline.mbeir.instructions import InstructionTable, SeededChoice
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.pools import CandidatePool
from pipeline.mbeir.queries import read_queries
from pipeline.mbeir.stores import build_store
from pipeline.serving.server import ManagedServer
from pipeline.teacher.client import TeacherClient
from pipeline.teacher.request_body import TeacherRequest, request_body
from pipeline.teacher.request_images import ImageEncoder, ImageMode
from pipeline.teacher.requests import judge_request, reason_request
from pipeline.traces.families import family_of
from pipeline.traces.judgements import ASSESS, VERIFY
from pipeline.traces.prompting import assess_prompt, image_paths, reason_prompt, verify_prompt
from prompts import PromptSet
from schemas.config import BuildConfig
from schemas.hosting import Endpoint
from schemas.teacher import TeacherAnswer
from schemas.teacher_config import TeacherConfig


def requests(config: BuildConfig, count: int) -> dict[str, list[TeacherRequest]]:
    """Makes `count` requests per task from training queries of all datasets."""
    layout, teacher = Layout.open(config.mbeir), config.teacher
    prompts, table = PromptSet.load(teacher.prompts), InstructionTable.load(layout.instructions)
    encoder = ImageEncoder(build_store(config), ImageMode(teacher.images), max_pixels=teacher.max_pixels, keep=4 * count)
    rows = [query for _, query in read_queries(layout.queries("union_train"))][:count]
    found: dict[str, list[TeacherRequest]] = {"assess": [], "reason": [], "verify": []}
    with CandidatePool.open(layout.global_pool("train")) as pool:
        for query, target in zip(rows, pool.fetch([query.pos_cand_list[0] for query in rows]), strict=True):
            family = family_of(query.task_id)
            instruction = table.for_query(query, SeededChoice(), split="train")
            images = {role: encoder.encode(path) for role, path in image_paths(query, target).items()}
            key = query.qid
            found["assess"].append(judge_request(key, assess_prompt(prompts, query, instruction), images, ASSESS, teacher))
            found["reason"].append(reason_request(key, reason_prompt(prompts, query, instruction), images, family, teacher))
            asked = verify_prompt(prompts, query, instruction, "large red circle top left, day", target)
            found["verify"].append(judge_request(key, asked, images, VERIFY, teacher))
    return found


async def ours(endpoint: Endpoint, config: TeacherConfig, asked: list[TeacherRequest], in_flight: int) -> list[TeacherAnswer]:
    transport = config.transport.model_copy(update={"start_in_flight": in_flight, "max_in_flight": in_flight})
    async with TeacherClient(transport.client((endpoint,))) as client:
        return await asyncio.gather(*(client.ask(request) for request in asked))


async def bare(endpoint: Endpoint, asked: list[TeacherRequest], in_flight: int) -> None:
    waiting = iter(asked)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def worker() -> None:
            for request in waiting:
                body, headers = request_body(request, endpoint.model), {"Content-Type": "application/json"}
                async with session.post(f"{endpoint.url}/chat/completions", data=body, headers=headers) as response:
                    await response.read()

        await asyncio.gather(*(worker() for _ in range(in_flight)))


def main(
    path: Annotated[Path, typer.Argument(metavar="CONFIG")] = Path("configs/pocket.yaml"),
    count: Annotated[int, typer.Option("--requests")] = 300,
    in_flight: int = 64,
    rounds: int = 3,
) -> None:
    """Prints a table."""
    console = Console()
    config = load_config(path, BuildConfig)
    if config.teacher.server is None:
        raise typer.BadParameter("the config has no managed teacher")
    asked = requests(config, count)
    server = ManagedServer(config.teacher.server.model_copy(update={"media_root": config.mbeir.resolve()}))
    began = time.perf_counter()
    with server:
        healthy = time.perf_counter() - began
        asyncio.run(ours(server.endpoint, config.teacher, asked["reason"][:1], 1))
        console.print(f"healthy after {healthy:.0f} s, first answer after {time.perf_counter() - began:.0f} s")
        table = Table("task", "requests/s", "bare loop", "ratio", "tokens in/s", "tokens out/s", "usable")
        for task, batch in asked.items():
            rates: dict[str, list[float]] = {"ours": [], "bare": []}
            answers: list[TeacherAnswer] = []
            for _ in range(rounds):
                began = time.perf_counter()
                asyncio.run(bare(server.endpoint, batch, in_flight))
                rates["bare"].append(count / (time.perf_counter() - began))
                began = time.perf_counter()
                answers = asyncio.run(ours(server.endpoint, config.teacher, batch, in_flight))
                rates["ours"].append(count / (time.perf_counter() - began))
            mine, base = statistics.median(rates["ours"]), statistics.median(rates["bare"])
            table.add_row(
                task,
                f"{mine:.1f}",
                f"{base:.1f}",
                f"{mine / base:.2f}",
                f"{mine * sum(a.prompt_tokens for a in answers) / count:,.0f}",
                f"{mine * sum(a.completion_tokens for a in answers) / count:,.0f}",
                f"{sum(a.ok for a in answers)}/{count}",
            )
        console.print(table)


if __name__ == "__main__":
    typer.run(main)
