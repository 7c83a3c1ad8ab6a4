"""Means and ranges of the results table over runs with different seeds.

mbeir-cot train configs/train-pocket.yaml --set seed=1 --out build/pocket-train-1   (and `eval`), for each seed
python -m bench.seeds build/pocket-train build/pocket-train-1 build/pocket-train-2
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from pipeline.traces.families import FAMILIES, family_of
from schemas.mbeir import DatasetTask


def mean(result: dict[str, Any], family: str | None, pool: str) -> float:
    values = [
        task[pool] for task in result["tasks"] if family in (None, family_of(DatasetTask.parse(task["task"]).task_id).name)
    ]
    return 100 * float(np.mean(values))


def rows(found: list[list[dict[str, Any]]], pool: str) -> list[list[str]]:
    """Makes a row per model: its name, mean hit@k in per cent with its range, think rate."""
    table = []
    for name in dict.fromkeys(result["name"] for results in found for result in results):
        results = [result for run in found for result in run if result["name"] == name]
        cells = []
        for family in (*FAMILIES, None):
            values = [mean(result, family, pool) for result in results]
            spread = f" ({min(values):.1f}-{max(values):.1f})" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{spread}")
        costs = [task["costs"] for result in results for task in result["tasks"]]
        rate = sum(cost["reasoned"] for cost in costs) / sum(cost["queries"] for cost in costs)
        alone = " (one seed)" if len(results) < len(found) else ""
        table.append([f"{name}{alone}", *cells, f"{rate:.1%}"])
    return table


def main(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")],
    split: str = "test",
    markdown: Annotated[bool, typer.Option("--markdown", help="As a document's table.")] = False,
) -> None:
    """Prints hit@k in per cent: the mean over the runs that have the model, and its range."""
    found = [json.loads((run / "eval" / f"results_{split}.json").read_text(encoding="utf-8")) for run in runs]
    for pool, title in (("local", "local pools"), ("union", "union of all pools")):
        head, body = [title, *FAMILIES, "mean", "think rate"], rows(found, pool)
        if markdown:
            lines = [head, ["---"] * len(head), *body]
            print("\n".join(f"| {' | '.join(line)} |" for line in lines), end="\n\n")
            continue
        table = Table(*head)
        for row in body:
            table.add_row(*row)
        Console(width=160).print(table)


if __name__ == "__main__":
    typer.run(main)
