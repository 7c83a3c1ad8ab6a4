"""The tables of a training run's report."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.report.page import Grid
from pipeline.traces.families import family_of
from schemas.mbeir import DatasetTask
from trainer.evaluation.diagnostics import Diagnostics, Group

Entry = Mapping[str, Any]


def mean_rate(
    result: Mapping[str, Any], family: str | None = None, key: str = "local", *, tasks: Collection[str] | None = None
) -> float:
    """Unweighted mean of hit@k over the dataset-tasks (of a family; of these)."""
    values = [
        task[key]
        for task in result["tasks"]
        if task[key] is not None
        and (tasks is None or task["task"] in tasks)
        and family in (None, family_of(DatasetTask.parse(task["task"]).task_id).name)
    ]
    return float(np.mean(values)) if values else float("nan")


def make_table(results: Sequence[Entry]) -> Grid:
    tasks = list(enumerate(results[0]["tasks"]))
    held = [task["task"] for _, task in tasks if task.get("held_out")]
    rows = []
    for i, task in sorted(tasks, key=lambda one: bool(one[1].get("held_out"))):
        name = f"held out: {task['task']}" if task.get("held_out") else task["task"]
        rows.append((name, str(task["k"]), *(_pair(one["tasks"][i]) for one in results)))
    if held:
        trained = [task["task"] for _, task in tasks if not task.get("held_out")]
        rows += [_mean_row("mean held out", results, held), _mean_row("mean trained", results, trained)]
    rows.append(_mean_row("mean", results))
    return Grid(
        "The table, with controls",
        ("dataset-task", "k", *(one["name"] for one in results)),
        rows,
        "hit@k in per cent: local pool / union of all pools."
        + (" Held out: dataset-tasks that training left out (data.hold_out)." if held else ""),
    )


def make_costs(results: Sequence[Entry]) -> Grid:
    rows = []
    for one in results:
        costs = [task["costs"] for task in one["tasks"]]
        queries, seconds = sum(c["queries"] for c in costs), sum(c["seconds"] for c in costs)
        rows.append(
            (
                one["name"],
                f"{sum(c['reasoned'] for c in costs) / max(1, queries):.1%}",
                f"{sum(c['tokens'] for c in costs) / max(1, queries):.1f}",
                f"{queries / seconds:.0f}" if seconds else "-",
                f"{1e3 * max(c['p95_s'] for c in costs):.0f}" if seconds else "-",
                f"{sum(c['cut'] for c in costs):,}",
            )
        )
    header = ("model", "think rate", "tokens a query", "queries/s", "p95 ms", "cut traces")
    return Grid(
        "Costs",
        header,
        rows,
        "Latency: from the start of a query's prefill to its embedding, in batches; that of the slowest dataset-task.",
    )


def make_diagnostics(found: Diagnostics) -> list[Grid]:
    """What explains the table; no grid for what is not known."""
    grids = [
        _make_groups(f"TRACE by {title}", note, groups)
        for title, note, groups in (
            ("the teacher's P(complex)", "How complex the teacher found the same query.", found.by_difficulty),
            ("agreement with the teacher", "Queries that reasoned, by their trace's answer.", found.by_agreement),
            (
                "confidence of the trace",
                "Queries that reasoned, by the mean log-probability of their trace; without it: their bypass embedding.",
                found.by_confidence,
            ),
        )
        if groups
    ]
    if found.swap_test:
        rows = [
            (
                swap.trace,
                f"{swap.queries:,}",
                f"{swap.cosine:.3f}",
                _pair({"local": swap.local, "union": swap.union}),
                f"{swap.first_changed:.1%}",
            )
            for swap in found.swap_test
        ]
        header = ("after the trace", "queries", "cosine to own", "hit@k", "another first result")
        note = "Queries that reasoned, with the same weights, after other traces. Without loss, no trace was read."
        grids.append(Grid("Swap test", header, rows, note))
    return grids


def _make_groups(title: str, note: str, groups: Sequence[Group]) -> Grid:
    first = groups[0]
    header = ["queries that are in", "queries", "think rate", "trace"]
    header += ["direct"] if first.direct_local is not None else []
    header += ["without it"] if first.bypass_local is not None else []
    rows = [
        [
            one.name,
            f"{one.queries:,}",
            f"{one.think_rate:.1%}",
            *(
                _pair({"local": local, "union": union})
                for local, union in (
                    (one.local, one.union),
                    (one.direct_local, one.direct_union),
                    (one.bypass_local, one.bypass_union),
                )
                if local is not None
            ),
        ]
        for one in groups
    ]
    return Grid(title, header, rows, f"{note} Hit@k in per cent, local / union, a mean over queries.")


def _mean_row(name: str, results: Sequence[Entry], tasks: Collection[str] | None = None) -> tuple[str, ...]:
    means = [{key: mean_rate(one, key=key, tasks=tasks) for key in ("local", "union")} for one in results]
    return (name, "", *map(_pair, means))


def _pair(task: Mapping[str, Any]) -> str:
    union = task["union"]
    return f"{100 * task['local']:.1f}" + (f" / {100 * union:.1f}" if union is not None and union == union else "")  # noqa: PLR0124
