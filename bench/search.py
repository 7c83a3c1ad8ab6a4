"""Exact search compared with bare faiss: a million vectors, in blocks, with faiss's order of ties.

    python -m bench.search [--rows 1000000] [--dim 256] [--queries 1000] [-k 50] [--rounds 3]

Both search the same normalised vectors and must return the same results. `streamed` reads the vectors from a `.npy` file block by
block in its own process, whose memory beyond the imports is printed beside the size of the file.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import faiss
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from trainer.embedding.vectors import BLOCK_ROWS, normalise, read_blocks
from trainer.retrieval.topk import top_k

STREAMED = """
import resource, sys
import numpy as np
from trainer.retrieval.topk import normalise, read_blocks, top_k
path, queries, k = sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
anonymous = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) / 1024
before, most = anonymous(), 0.0
def watched(parts):
    global most
    for part in parts:
        most = max(most, anonymous())
        yield part
found = top_k(queries, watched(read_blocks(np.load(path, mmap_mode="r"))), k)
most = max(most, anonymous())
print(most - before, int(found.positions.sum()))
"""


def main(
    rows: int = 1_000_000,
    dim: int = 256,
    queries: int = 1_000,
    k: Annotated[int, typer.Option("-k")] = 50,
    rounds: int = 3,
) -> None:
    """Prints a table with the ratio to faiss in the same run."""
    console = Console()
    rng = np.random.default_rng(0)
    pool = normalise(rng.standard_normal((rows, dim), np.float32))
    asked = normalise(rng.standard_normal((queries, dim), np.float32))
    index = faiss.IndexFlatIP(dim)
    index.add(pool)
    seconds: dict[str, list[float]] = {"faiss IndexFlatIP": [], "top_k": []}
    for _ in range(rounds):
        began = time.perf_counter()
        _, theirs = index.search(asked, k)
        seconds["faiss IndexFlatIP"].append(time.perf_counter() - began)
        began = time.perf_counter()
        ours = top_k(asked, (pool[start : start + BLOCK_ROWS] for start in range(0, rows, BLOCK_ROWS)), k)
        seconds["top_k"].append(time.perf_counter() - began)
    # the two sum products in different orders, so neighbours whose scores agree up to the last digits may swap
    same = float((ours.positions == theirs).mean())
    base = statistics.median(seconds["faiss IndexFlatIP"])
    table = Table("search", "seconds", "queries/s", "x faiss")
    for name, values in seconds.items():
        took = statistics.median(values)
        table.add_row(name, f"{took:.2f}", f"{queries / took:,.0f}", f"{base / took:.2f}")
    del index
    with tempfile.TemporaryDirectory() as folder:
        path, query = Path(folder) / "pool.npy", Path(folder) / "queries.npy"
        np.save(path, pool.astype(np.float16))
        np.save(query, asked)
        began = time.perf_counter()
        top_k(asked, read_blocks(np.load(path, mmap_mode="r")), k)
        took = time.perf_counter() - began
        table.add_row("top_k, streamed from float16", f"{took:.2f}", f"{queries / took:,.0f}", f"{base / took:.2f}")
        done = subprocess.run(
            [sys.executable, "-c", STREAMED, str(path), str(query), str(k)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=True,
        )
        beyond = float(done.stdout.split()[0])
        size = path.stat().st_size / 2**20
    console.print(f"{rows:,} x {dim}, {queries:,} queries, top {k}")
    console.print(table)
    console.print(f"equal positions: {same:.4%}")
    console.print(
        f"streamed: {beyond:,.0f} MiB beyond the imports while searching {size:,.0f} MiB; "
        f"a block is {BLOCK_ROWS * dim * 4 / 2**20:.0f} MiB and its scores {BLOCK_ROWS * min(queries, 1024) * 4 / 2**20:.0f} MiB"
    )


if __name__ == "__main__":
    typer.run(main)
