"""The whole results table over runs with different seeds, from the files that `eval` and `zero-shot run` wrote.

mbeir-cot train configs/train-pocket.yaml --set seed=1 --out build/pocket-train-1    (for each seed)
mbeir-cot eval build/pocket-train-1 --zero-shot ROOT
python -m bench.seeds build/pocket-train build/pocket-train-1 build/pocket-train-2

Each figure is the mean over the runs that have the model, with the least and the greatest: hit@k by family, for dataset-tasks that
training left out (data.hold_out), and the zero-shot suite's columns for all, seen and unseen queries.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.traces.families import FAMILIES
from schemas.errors import InputError
from trainer.evaluation.report_tables import mean_rate
from trainer.zero_shot.columns import ALL, SEEN, UNSEEN, Column
from trainer.zero_shot.results import SuiteResults, read_results

Results = list[dict[str, Any]]
Rows = list[list[str]]


def over_seeds(values: Collection[float], runs: int | None = None) -> str:
    """Formats rates as "mean (least-greatest)" in per cent; with the number of seeds if it is not `runs`."""
    known = [100 * value for value in values if not np.isnan(value)]
    if not known:
        return ""
    between = " to " if min(known) < 0 else "-"
    spread = f" ({min(known):.1f}{between}{max(known):.1f})" if len(known) > 1 else ""
    return f"{np.mean(known):.1f}{spread}" + ("" if runs in (None, len(known)) else f" [{_seeds(len(known))}]")


def _seeds(number: int) -> str:
    return "one seed" if number == 1 else f"{number} seeds"


def hit_rows(found: Sequence[Results], pool: str) -> tuple[list[str], Rows]:
    """Makes (header, a row per model): families, held-out and trained dataset-tasks if there are any, the mean, the think rate."""
    marked = [{task["task"] for task in run[0]["tasks"] if task.get("held_out")} for run in found]
    if any(held != marked[0] for held in marked):
        raise InputError("the runs leave out different dataset-tasks (data.hold_out)", "compare runs of the same settings")
    held = marked[0]
    trained = {task["task"] for run in found for task in run[0]["tasks"]} - held
    groups: dict[str, Callable[[dict[str, Any]], float]] = {
        family: partial(mean_rate, family=family, key=pool) for family in FAMILIES
    }
    if held:
        groups[f"held out ({', '.join(sorted(held))})"] = partial(mean_rate, key=pool, tasks=held)
        groups["trained"] = partial(mean_rate, key=pool, tasks=trained)
    groups["mean"] = partial(mean_rate, key=pool)
    table = []
    for name in dict.fromkeys(result["name"] for results in found for result in results):
        results = [result for run in found for result in run if result["name"] == name]
        cells = [over_seeds([measure(result) for result in results]) for measure in groups.values()]
        costs = [task["costs"] for result in results for task in result["tasks"]]
        rate = sum(cost["reasoned"] for cost in costs) / max(1, sum(cost["queries"] for cost in costs))
        alone = f" ({_seeds(len(results))})" if len(results) < len(found) else ""
        table.append([f"{name}{alone}", *cells, f"{rate:.1%}"])
    return [*groups, "think rate"], table


def suite_rows(found: Sequence[Sequence[SuiteResults]]) -> tuple[list[str], Rows]:
    """Makes (header, a row per column and group of queries), a cell per embedder; last the think rates."""
    names = list(dict.fromkeys(one.name for run in found for one in run))
    of_name = {name: [one for run in found for one in run if one.name == name] for name in names}
    metrics = {column.column: column.metric for results in of_name.values() for one in results for column in one.columns}
    table = []
    for column, metric in metrics.items():
        for group in (ALL, SEEN, UNSEEN):
            cells = [
                over_seeds([rate for one in of_name[name] if (rate := _rate(one, column, group)) is not None], len(found))
                for name in names
            ]
            if any(cells):
                table.append([f"{column} ({metric})" if group == ALL else f"{column}, {group}", *cells])
    means = [[_mean_over_columns(one) for one in of_name[name]] for name in names]
    rates = [[_think_rate(one.columns) for one in of_name[name]] for name in names]
    table.append(["mean of columns", *(over_seeds(of_model, len(found)) for of_model in means)])
    table.append(["think rate", *(over_seeds(of_model, len(found)) for of_model in rates)])
    return names, table


def _rate(one: SuiteResults, name: str, group: str) -> float | None:
    column = next((column for column in one.columns if column.column == name), None)
    means = column.groups.get(group) if column is not None else None
    return means.macro[column.metric] if column is not None and means is not None else None


def _mean_over_columns(one: SuiteResults) -> float:
    return float(np.mean([column.groups[ALL].macro[column.metric] for column in one.columns]))


def _think_rate(columns: Sequence[Column]) -> float:
    return sum(column.reasoned for column in columns) / max(1, sum(column.groups[ALL].queries for column in columns))


def print_table(title: str, header: Sequence[str], body: Rows, *, markdown: bool) -> None:
    """On the terminal, or with `markdown` as a document's table."""
    if markdown:
        lines = [[title, *header], ["---"] * (1 + len(header)), *body]
        print("\n".join(f"| {' | '.join(line)} |" for line in lines), end="\n\n")
        return
    table = Table(*(escape(name) for name in (title, *header)))
    for row in body:
        table.add_row(*map(escape, row))
    Console(width=190).print(table)


def main(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")],
    split: str = "test",
    markdown: Annotated[bool, typer.Option("--markdown", help="As a document's tables.")] = False,
) -> None:
    """Prints the table in per cent: mean over the runs, least and greatest."""
    found = [json.loads((run / "eval" / f"results_{split}.json").read_text(encoding="utf-8")) for run in runs]
    for pool, title in (("local", "local pools"), ("union", "union of all pools")):
        header, body = hit_rows(found, pool)
        print_table(title, header, body, markdown=markdown)
    suites = [read_results(run) for run in runs]
    if any(suites):
        header, body = suite_rows(suites)
        print_table("zero-shot suite", header, body, markdown=markdown)


if __name__ == "__main__":
    typer.run(main)
