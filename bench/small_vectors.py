"""Recall of small vectors against exact search, beside the bytes that a vector takes and the time of a search.

    python -m bench.small_vectors INDEX [--queries 256] [--dims 32,64,128] [-k 10]

INDEX is copied; its own candidates, with noise, are the queries: `--noise` sets how far they are from the nearest. `mbeir-cot index …
--small` prints the recall for real queries.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated, cast, get_args

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from trainer.embedding.vectors import normalise
from trainer.retrieval.index import Index
from trainer.retrieval.small_vectors import SmallKind, recall


def main(
    index: Path,
    count: Annotated[int, typer.Option("--queries")] = 256,
    dims: str = "32,64,128",
    k: Annotated[int, typer.Option("-k")] = 10,
    noise: float = 0.05,
) -> None:
    """Prints a table."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(index, Path(folder) / "index")
        opened = Index.open(Path(folder) / "index")
        chosen = np.sort(rng.permutation(opened.metadata.count)[:count])
        vectors = normalise(opened.vectors[chosen])
        queries = normalise(vectors + noise * rng.standard_normal(vectors.shape))
        began = time.perf_counter()
        exact = opened.search(queries, k).positions
        took = time.perf_counter() - began
        full = opened.metadata.dim
        table = Table("vectors", "dimensions", "bytes", f"recall@{k}", "rescored", "ms for all queries")
        table.add_row("float16, exact search", str(full), str(2 * full), "1.000", "", f"{1e3 * took:,.0f}")
        for size in [*map(int, dims.split(",")), full]:
            plain = recall(exact, opened.search(queries, k, dims=size).positions)
            table.add_row("float16, exact, truncated", str(size), str(2 * size), f"{plain:.3f}", "", "")
            for kind in cast(tuple[SmallKind, ...], get_args(SmallKind)):
                small = opened.make_small(kind, size)
                began = time.perf_counter()
                rescored = recall(exact, opened.search(queries, k, small=True).positions)
                took = time.perf_counter() - began
                alone = recall(exact, small.search(queries, k))
                table.add_row(kind, str(size), str(small.form.bytes), f"{alone:.3f}", f"{rescored:.3f}", f"{1e3 * took:,.0f}")
        Console().print(f"{opened.metadata.count:,} vectors, {count:,} queries")
        Console().print(table)


if __name__ == "__main__":
    typer.run(main)
