"""Speed of builds, compared with bare loops that send the same requests in the same run.

    python bench/build.py instant [--queries 10000]   # against an oracle that answers instantly, and after 200 ms
    python bench/build.py scale [--queries 10000,100000,300000]
    python bench/build.py teacher                     # against the real pocket vLLM server

`instant` and `teacher` first run the build and record its requests, then send the same requests to the same server from plain
aiohttp workers. `scale` reports cost per record and memory per process, for the build and for its replay from the ledger; verifies
the ledger; and reports the time of a re-run of the finished build.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer
import yaml
from rich.console import Console

from bench.oracle import ROOT, Oracle
from bench.processes import ProcessWatch, Usage
from pipeline.ledger.maintenance import verify_ledger
from schemas.mbeir import DATASET_NAMES

app = typer.Typer(no_args_is_help=True)
console = Console(highlight=False, soft_wrap=True)


def many_queries(world: Path, root: Path, count: int) -> Path:
    """Writes an M-BEIR directory with `count` queries: the world's own under new ids and texts, sharing its images."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for name in ("mbeir_images", "cand_pool", "instructions"):
        (root / name).symlink_to(world / name)
    texts = [
        line
        for path in sorted((world / "query/train").glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    lines = [json.loads(text) for text in texts]
    place = root / "query" / "train"
    place.mkdir(parents=True)
    files: dict[int, Any] = {}
    numbers: dict[int, int] = {}
    for number in range(count):
        row = dict(lines[number % len(lines)])
        dataset = int(row["qid"][0])
        numbers[dataset] = numbers.get(dataset, 0) + 1
        row["qid"] = f"{dataset}:{numbers[dataset]}"
        if row["query_txt"]:
            row["query_txt"] = f"{row['query_txt']} ({number})"
        if dataset not in files:
            files[dataset] = (place / f"mbeir_{DATASET_NAMES[dataset]}_train.jsonl").open("w", encoding="utf-8")
        files[dataset].write(json.dumps(row) + "\n")
    for file in files.values():
        file.close()
    return root


def run(config: Path) -> dict[str, Any]:
    """Runs a build and returns its final progress file, wall time and the usage of its processes."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "mbeir_cot", "build", str(config), "--quiet"], stdout=subprocess.DEVNULL, cwd=ROOT
    )
    watch = ProcessWatch(process.pid)
    if process.wait():
        raise SystemExit("the build failed")
    wall = time.perf_counter() - began
    out = Path(yaml.safe_load(config.read_text(encoding="utf-8"))["out"])
    progress = json.loads((out / "work" / "progress.json").read_text(encoding="utf-8"))
    return {"wall_s": wall, "usage": watch.stop(), **progress}


async def bare(url: str, bodies: list[bytes], in_flight: int) -> float:
    """Returns the requests per second of a loop that only sends and receives."""
    waiting = iter(bodies)
    began = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def worker() -> None:
            for body in waiting:
                async with session.post(
                    f"{url}/chat/completions", data=body, headers={"Content-Type": "application/json"}
                ) as r:
                    await r.read()
                    assert r.status == 200, await r.text()

        await asyncio.gather(*(worker() for _ in range(in_flight)))
    return len(bodies) / (time.perf_counter() - began)


@app.command()
def instant(world: Path = Path("build/pocket/world/mbeir"), queries: int = 10_000, workers: int = 2) -> None:
    """Client-bound: records per second through all steps."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        root = many_queries(world.resolve(), directory / "M-BEIR", queries)
        for delay, in_flight in ((0.0, 128), (0.2, 256)):
            bodies_file = directory / f"bodies-{delay}"
            with Oracle(directory / f"log-{delay}", delay=delay, bodies=bodies_file) as oracle:
                config = oracle.config(
                    directory,
                    root,
                    out=str(directory / f"out-{delay}"),
                    workers=workers,
                    route__policy="by-modality",
                    route__always_assess=True,
                    input__image_roots=[str(world.resolve())],
                    teacher__transport__start_in_flight=in_flight // workers,
                    teacher__transport__max_in_flight=in_flight // workers,
                )
                took = run(config)
                bodies = [line for line in bodies_file.read_bytes().split(b"\n") if line]
                bodies_file.unlink()
            with Oracle(directory / f"log-bare-{delay}", delay=delay) as oracle:
                base = asyncio.run(bare(oracle.url, bodies, in_flight))
            annotating = took["annotating_s"]
            rate = len(bodies) / annotating
            console.print(
                f"{delay * 1000:.0f} ms, {workers} workers, {in_flight} in flight: {took['done'] / annotating:,.0f} records/s, "
                f"{rate:,.0f} requests/s = {rate / base:.2f} of the bare loop ({base:,.0f}/s); wall {took['wall_s']:.1f} s, "
                f"{_memory(took['usage'])}"
            )


@app.command()
def scale(
    world: Path = Path("build/pocket/world/mbeir"),
    queries: Annotated[str, typer.Option(help="Comma-separated sizes.")] = "10000,100000,300000",
    workers: int = 2,
    scratch: Path | None = None,
) -> None:
    """Cost per record from 10 k to a million queries, and the cost of a replay and a plain re-run.

    A replay makes every annotation again from the ledger; a plain re-run finds that nothing has changed. `scratch` is a directory
    on a disk with some 5 GB per million queries.
    """
    for size in map(int, queries.split(",")):
        with tempfile.TemporaryDirectory(dir=scratch) as place:
            directory = Path(place)
            root = many_queries(world.resolve(), directory / "M-BEIR", size)
            with Oracle(directory / "log") as oracle:
                config = oracle.config(
                    directory,
                    root,
                    workers=workers,
                    input__image_roots=[str(world.resolve())],
                    teacher__transport__start_in_flight=64,
                    teacher__transport__max_in_flight=64,
                )
                server = ProcessWatch(oracle.process.pid)
                took = run(config)
                served = server.stop()["driver"]
                asked = _lines(directory / "log")
                console.print(f"{size:,} queries, {asked / size:.2f} requests each")
                console.print(f"  build: {_cost(took, size)}; server {served.cpu_s / size * 1e6:,.0f} us CPU")
                ledger = directory / "out" / "ledger"
                began = time.perf_counter()
                faults = verify_ledger(ledger)
                console.print(
                    f"  ledger: {_size(ledger) / size:,.0f} bytes per record, verified in {time.perf_counter() - began:.1f} s: "
                    f"{'; '.join(faults) or 'complete'}"
                )
                before = _digests(directory / "out")
                (directory / "out" / "work" / "finished.json").unlink()  # so that every annotation is made again
                console.print(f"  replay: {_cost(run(config), size)}")
                same = "the same files" if _digests(directory / "out") == before else "OTHER FILES"
                console.print(f"  {same}, {_lines(directory / 'log') - asked} asked again")
                again = run(config)
                console.print(f"  re-run of the finished build: {again['wall_s']:.1f} s; {_memory(again['usage'])}")


def _cost(took: dict[str, Any], size: int) -> str:
    """Describes wall and processor time per record, and the memory of a build's processes."""
    cpu = ", ".join(f"{kind} {one.cpu_s / size * 1e6:,.0f}" for kind, one in sorted(took["usage"].items()))
    return (
        f"{took['annotating_s'] / size * 1e6:,.0f} us per record annotating, {took['wall_s'] / size * 1e6:,.0f} in all "
        f"({took['wall_s']:,.0f} s); us CPU per record: {cpu}; {_memory(took['usage'])}"
    )


def _memory(usage: dict[str, Usage]) -> str:
    return "peak MiB per process: " + ", ".join(f"{kind} {one.mib:,.0f}" for kind, one in sorted(usage.items()))


def _lines(path: Path) -> int:
    return sum(1 for _ in path.open("rb")) if path.exists() else 0


def _digests(out: Path) -> dict[str, str]:
    manifest = json.loads((out / "dataset" / "manifest.json").read_text(encoding="utf-8"))
    return {file["path"]: file["sha256"] for file in manifest["files"]}


@app.command()
def teacher(config: Path = Path("configs/pocket.yaml"), limit: int = 600) -> None:
    """Teacher-bound: the build compared with a bare loop against the same real server."""
    from pipeline.config import load_config
    from pipeline.serving.server import ManagedServer
    from pipeline.serving.teacher_servers import server_config
    from schemas.config import BuildConfig

    settings = load_config(config, BuildConfig)
    managed = server_config(settings.teacher, settings.mbeir)
    if managed is None:
        raise SystemExit(f"{config} has no managed teacher: this benchmark starts its own server")
    with tempfile.TemporaryDirectory() as scratch, ManagedServer(managed) as server:
        directory = Path(scratch)
        asyncio.run(_recorded(directory, server.endpoint.url, settings, limit))


async def _recorded(directory: Path, url: str, settings: Any, limit: int) -> None:
    """Records the bodies of a build's requests, then runs the build and the bare loop alternately against the real server."""
    from pipeline.annotate.worker import AnnotationWorker
    from pipeline.mbeir.layout import Layout
    from pipeline.mbeir.work_list import collect
    from pipeline.serving.teacher_servers import Endpoints
    from pipeline.teacher.request_body import request_body
    from schemas.hosting import Endpoint

    endpoint = Endpoint(url=url, model=settings.teacher.server.served_name)
    given = settings.model_copy(update={"input": settings.input.model_copy(update={"limit": limit})})
    work = collect(Layout.open(given.mbeir), given.input, rejects=directory / "rejects")
    bodies: list[bytes] = []

    async def annotations(name: str, record: bool) -> float:
        worker = AnnotationWorker(given, str(directory / name))
        await worker.connect(Endpoints((endpoint,), (endpoint,)))
        client = await worker.clients.get("teacher")
        if record:
            ask = client.ask

            async def recorded(request: Any) -> Any:
                bodies.append(request_body(request, endpoint.model))
                return await ask(request)

            client.ask = recorded  # type: ignore[method-assign]
        began = time.perf_counter()
        await asyncio.gather(*(worker.annotate(work.read(i, i + 100)) for i in range(0, len(work), 100)))
        took = time.perf_counter() - began
        await worker.close()
        return took

    await annotations("first", True)  # also warms the server's caches, for both alike
    ratios = []
    for number in range(3):
        build_s = await annotations(f"run-{number}", False)
        rate = await bare(url, bodies, given.teacher.transport.max_in_flight)
        ratios.append((len(bodies) / build_s) / rate)
        console.print(
            f"build {len(work) / build_s:.1f} records/s = {len(bodies) / build_s:.1f} requests/s; bare loop {rate:.1f} requests/s; "
            f"ratio {ratios[-1]:.3f}"
        )
    console.print(f"median ratio {sorted(ratios)[1]:.3f}; {len(bodies) / len(work):.2f} requests per record")


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(ROOT))
    app()
