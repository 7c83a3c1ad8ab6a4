"""Speed and memory of the reader at M-BEIR's real size: converting the global pool, looking candidates up, reading queries.

    python bench/pools.py [--rows 5600000] [--queries 300000] [--dir DIR] [--keep]

Writes a pool file like the real global pool (about 430 bytes per line, dids in order, a third of each modality, passages as long
as Wikipedia's), then measures each step in its own process. Conversion is bound by parsing JSON, so it is compared with a plain
loop of `orjson.loads` over the same file.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

FETCHED = 100_000
LIMITS = {
    "convert": "120 s, 2,048 MB",
    "open": "0.5 s",
    "fetch": "2 s, 500 MB",
    "queries": "10 s",
}


def write_pool(path: Path, rows: int) -> None:
    rng = random.Random(0)
    words = [f"word{n}" for n in range(3000)]
    passages = [" ".join(rng.choices(words, k=rng.randint(10, 70))) for _ in range(2000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            dataset, n = number * 10 // rows, number + 1
            kind = number % 3
            txt = json.dumps(passages[rng.randrange(2000)]) if kind != 1 else "null"
            image = f'"mbeir_images/oven_images/wikipedia_images_full/Q{n % 1000}/Q{n}.jpg"' if kind else "null"
            modality = ("text", "image", "image,text")[kind]
            source = json.dumps(json.dumps({"wikidata_id": f"Q{n}", "wikipedia_title": f"Title {n}"}))
            head = f'{{"txt": {txt}, "img_path": {image}, "modality": "{modality}"'
            file.write(f'{head}, "did": "{dataset}:{n}", "src_content": {source}}}\n')


def write_queries(path: Path, rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for n in range(1, rows + 1):
            row = {
                "qid": f"5:{n}",
                "query_txt": "What is the name of the mountain in this image?",
                "query_img_path": f"mbeir_images/oven_images/{n % 100:02d}/oven_{n:08d}.jpg",
                "query_modality": "image,text",
                "query_src_content": json.dumps({"entity_id": f"Q{n}"}),
                "pos_cand_list": [f"5:{n + k}" for k in range(6)],
                "neg_cand_list": [],
                "task_id": 6,
            }
            file.write(json.dumps(row) + "\n")


STEPS = {
    # every step prints its seconds and the memory of its imports
    "plain": "import orjson\nbase = rss()\nt = now()\nfor line in open(path, 'rb'):\n    orjson.loads(line)\n",
    "convert": "from pipeline.mbeir.pools import CandidatePool\nbase = rss()\nt = now()\nCandidatePool.open(path, cache)\n",
    "open": "from pipeline.mbeir.pools import CandidatePool\nbase = rss()\nt = now()\nCandidatePool.open(path, cache)\n",
    "fetch": (
        "import random\nfrom pipeline.mbeir.pools import CandidatePool\nfrom schemas.mbeir import unhash_did\nbase = rss()\n"
        "pool = CandidatePool.open(path, cache)\nrng = random.Random(1)\n"
        f"dids = [unhash_did(int(h)) for h in pool.hashed_dids[[rng.randrange(len(pool)) for _ in range({FETCHED})]]]\n"
        "t = now()\nrows = pool.fetch(dids)\nassert [r.did for r in rows] == dids\n"
    ),
    "queries": (
        "from pipeline.mbeir.queries import read_queries\nbase = rss()\nt = now()\nn = sum(1 for _ in read_queries(path))\n"
    ),
}
PRELUDE = """
import resource, sys, time
from pathlib import Path
path, cache = Path(sys.argv[1]), Path(sys.argv[2])
now = time.perf_counter
rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
"""


def measure(step: str, path: Path, cache: Path) -> tuple[float, float, float]:
    """Runs a step in a fresh process. Returns (seconds, peak RSS in MB, peak RSS beyond the imports in MB)."""
    code = PRELUDE + STEPS[step] + "print(now() - t, rss(), rss() - base)\n"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(cache)], capture_output=True, text=True, encoding="utf-8", check=True
    )
    seconds, peak, beyond = map(float, done.stdout.split())
    return seconds, peak, beyond


def main(
    rows: Annotated[int, typer.Option(help="Lines of the pool; the real global test pool has 5.6 M.")] = 5_600_000,
    queries: Annotated[int, typer.Option(help="Lines of the query file.")] = 300_000,
    directory: Annotated[Path | None, typer.Option("--dir", help="Where to write; needs 1 kB per row.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the files.")] = False,
) -> None:
    """Prints a table of times, memory, and the ratio to plain orjson."""
    folder = Path(tempfile.mkdtemp(prefix="bench-pools-", dir=directory))
    pool, query, cache = folder / "mbeir_union_test_cand_pool.jsonl", folder / "mbeir_oven_train.jsonl", folder / "cache"
    try:
        began = time.perf_counter()
        write_pool(pool, rows)
        write_queries(query, queries)
        size = pool.stat().st_size
        console = Console()
        console.print(f"{rows:,} candidates, {size / 2**20:,.0f} MiB, written in {time.perf_counter() - began:.0f} s")
        results = {step: measure(step, query if step == "queries" else pool, cache) for step in STEPS}
        plain = results["plain"][0]
        table = Table("step", "seconds", "MB/s", "x plain orjson", "peak MB", "beyond imports", "limit")
        for step, (seconds, peak, beyond) in results.items():
            whole = step in ("plain", "convert")
            table.add_row(
                step,
                f"{seconds:.2f}",
                f"{size / seconds / 1e6:,.0f}" if whole else "",
                f"{seconds / plain:.2f}" if whole else "",
                f"{peak:,.0f}",
                f"{beyond:,.0f}",
                LIMITS.get(step, ""),
            )
        console.print(table)
        console.print(
            f"peak of this process (writing only): {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB"
        )
    finally:
        if not keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    typer.run(main)
