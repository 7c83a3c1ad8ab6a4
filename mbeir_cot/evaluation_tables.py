"""The tables of an evaluation, on the console: hit rates and costs, and what explains them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from trainer.evaluation.diagnostics import Diagnostics, Group
    from trainer.evaluation.results import Result, TaskResult
    from trainer.zero_shot.table import SuiteResults

_FAMILIES = ("visual", "text", "composed", "knowledge")


def show_results(console: Console, results: list[Result], split: str, held_out: tuple[str, ...] = ()) -> None:
    """Hit rates with controls, held-out dataset-tasks in a group of their own; then what it cost."""
    hits = Table("hit@k on " + escape(split), "k", *(escape(result.name) for result in results))
    rows = list(enumerate(results[0].tasks))
    for row, first in [one for one in rows if one[1].task not in held_out]:
        cells = [_pair(result.tasks[row].local, result.tasks[row].union) for result in results]
        hits.add_row(escape(first.task), str(first.k), *cells)
    hits.add_section()
    if held_out:
        for row, first in [one for one in rows if one[1].task in held_out]:
            cells = [_pair(result.tasks[row].local, result.tasks[row].union) for result in results]
            hits.add_row(f"held out: {escape(first.task)}", str(first.k), *cells)
        for name, tasks in (("held out", held_out), ("trained", tuple(t.task for _, t in rows if t.task not in held_out))):
            hits.add_row(f"mean {escape(name)}", "", *(_pair(r.mean_of(tasks), r.mean_of(tasks, union=True)) for r in results))
        hits.add_section()
    for family in _FAMILIES:
        hits.add_row(f"mean {escape(family)}", "", *(_pair(r.mean(family), r.mean(family, union=True)) for r in results))
    hits.add_row("[bold]mean[/]", "", *(_pair(r.mean(), r.mean(union=True)) for r in results))
    console.print(hits)
    console.print("local pool / union of all pools; unweighted means over dataset-tasks, as papers report")
    fallen = any(task.costs.fell_back for result in results for task in result.tasks)
    costs = Table("what it costs", *_COSTS, *(["fell back"] if fallen else []))
    for result in results:
        costs.add_row(escape(result.name), *_cost_cells(result.tasks, fallen=fallen))
    for result in results:
        if result.name == "trace":
            costs.add_section()
            for task in result.tasks:
                costs.add_row(f"trace, {escape(task.task)}", *_cost_cells([task], fallen=fallen))
    console.print(costs)
    console.print("latency: from a query's prefill to its embedding, in batches; of several datasets, the slowest's")
    console.print("queries/s: of all workers; not measured where a routing shares embeddings with an earlier one")


def show_diagnostics(console: Console, found: Diagnostics) -> None:
    """Shows what explains the table (`trainer.evaluation.diagnostics`)."""
    groups = (
        ("by the teacher's P(complex)", found.by_difficulty),
        ("by the trace's agreement with the teacher's", found.by_agreement),
        ("by the trace's confidence", found.by_confidence),
    )
    for title, part in groups:
        if part:
            show_groups(console, f"trace, {title}", part)
    if found.swap_test:
        table = Table("swap test: queries that reasoned, after", "queries", "cosine to own", "hit@k", "another first result")
        for swap in found.swap_test:
            cells = (f"{swap.queries:,}", f"{swap.cosine:.3f}", _pair(swap.local, swap.union), f"{swap.first_changed:.1%}")
            table.add_row(escape(swap.trace), *cells)
        console.print(table)
    if found.swap_test or any(part for _, part in groups):
        console.print("these are means over queries, not over dataset-tasks")


def show_suite(console: Console, results: list[SuiteResults]) -> None:
    """The zero-shot suite, where a run was scored on it."""
    if not results:
        return
    from trainer.zero_shot.report import suite_rows  # noqa: PLC0415 (heavy)

    table = Table("zero-shot suite", "metric", "queries", *(escape(one.name) for one in results))
    for row in suite_rows(results):
        table.add_row(*map(escape, row))
    console.print(table)
    console.print("in per cent, mean over the parts of a column; seen: training showed the same pair, image or text")


def show_groups(console: Console, title: str, groups: Sequence[Group]) -> None:
    """Groups of queries, with the columns that they have."""
    direct = any(one.direct_local is not None for one in groups)
    bypass = any(one.bypass_local is not None for one in groups)
    more = [*(["direct"] if direct else []), *(["without it"] if bypass else [])]
    table = Table(escape(title), "queries", "think rate", "trace", *more)
    for one in groups:
        cells = [
            *([_pair(one.direct_local, one.direct_union)] if direct else []),
            *([_pair(one.bypass_local, one.bypass_union)] if bypass else []),
        ]
        table.add_row(escape(one.name), f"{one.queries:,}", f"{one.think_rate:.1%}", _pair(one.local, one.union), *cells)
    console.print(table)


_COSTS = ("think rate", "tokens/query", "queries/s", "p50 ms", "p95 ms", "cut traces", "trace = teacher's")


def _cost_cells(tasks: list[TaskResult], *, fallen: bool) -> list[str]:
    costs = [task.costs for task in tasks]
    queries, seconds = sum(cost.queries for cost in costs), sum(cost.seconds for cost in costs)
    known = [task.trace_accuracy for task in tasks if task.trace_accuracy is not None]
    return [
        f"{sum(cost.reasoned for cost in costs) / max(1, queries):.1%}",
        f"{sum(cost.tokens for cost in costs) / max(1, queries):.1f}",
        f"{queries / seconds:.0f}" if seconds else "",
        f"{1e3 * max(cost.p50_s for cost in costs):.0f}" if any(cost.p50_s for cost in costs) else "",
        f"{1e3 * max(cost.p95_s for cost in costs):.0f}" if any(cost.p95_s for cost in costs) else "",
        f"{sum(cost.cut for cost in costs):,}",
        f"{sum(known) / len(known):.1%}" if known else "",
        *([f"{sum(cost.fell_back for cost in costs):,}"] if fallen else []),
    ]


def _pair(local: float | None, union: float | None) -> str:
    if local is None:
        return ""
    return f"{100 * local:.1f}" + (f" / {100 * union:.1f}" if union is not None else "")
