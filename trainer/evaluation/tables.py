"""Tables of an evaluation for the terminal: hit rates, what queries cost, and what explains the hit rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Group as Renderables
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from trainer.evaluation.diagnostics import Diagnostics, Group, Swap
from trainer.evaluation.hit_rates import Score, headline_k
from trainer.evaluation.results import Result, TaskResult

_FAMILIES: Final = ("visual", "text", "composed", "knowledge")
_COSTS: Final = ("think rate", "tokens/query", "queries/s", "p50 ms", "p95 ms", "cut traces", "trace = teacher's")


def render_results(results: Sequence[Result], split: str, held_out: Sequence[str] = ()) -> RenderableType:
    """Hit rates and costs of the evaluated models, one column each. held_out: dataset-tasks that training left out."""
    return Renderables(
        _hit_rates(results, split, held_out),
        "local pool / union of all pools; unweighted means over dataset-tasks, as papers report",
        _costs(results),
        "latency: from a query's prefill to its embedding, in batches; of several datasets, the slowest's",
        "queries/s: of all workers; not measured where a routing shares embeddings with an earlier one",
    )


def render_diagnostics(diagnostics: Diagnostics) -> RenderableType:
    """Hit rates by difficulty, agreement and confidence, and the swap test; nothing for a part that is empty."""
    tables: list[RenderableType] = []
    if diagnostics.by_difficulty:
        tables.append(render_groups("trace, by the teacher's P(complex)", diagnostics.by_difficulty))
    if diagnostics.by_agreement:
        tables.append(render_groups("trace, by the trace's agreement with the teacher's", diagnostics.by_agreement))
    if diagnostics.by_confidence:
        tables.append(render_groups("trace, by the trace's confidence", diagnostics.by_confidence))
    if diagnostics.swap_test:
        tables.append(_swaps(diagnostics.swap_test))
    if tables:
        tables.append("these are means over queries, not over dataset-tasks")
    return Renderables(*tables)


def render_scores(scores: Sequence[Score]) -> RenderableType:
    """Hit rates at each task's headline k in its local pool and in the union, with their means."""
    table = Table("dataset-task", "R@", "local", "union")
    columns: dict[str, list[float]] = {"single": [], "union": []}
    for task in dict.fromkeys(score.task for score in scores):
        k = headline_k(task)
        values = {score.pool: score.value for score in scores if score.task == task and score.k == k}
        for pool, value in values.items():
            columns[pool].append(value)
        table.add_row(escape(task.name), str(k), *(f"{values[pool]:.4f}" if pool in values else "" for pool in columns))
    table.add_row("mean", "", *(f"{sum(values) / len(values):.4f}" if values else "" for values in columns.values()))
    return table


def _hit_rates(results: Sequence[Result], split: str, held_out: Sequence[str]) -> Table:
    table = Table("hit@k on " + escape(split), "k", *(escape(result.name) for result in results))
    tasks = results[0].tasks
    trained = [task.task for task in tasks if task.task not in held_out]
    for position, task in enumerate(tasks):
        if task.task not in held_out:
            table.add_row(escape(task.task), str(task.k), *_task_cells(results, position))
    table.add_section()
    if held_out:
        for position, task in enumerate(tasks):
            if task.task in held_out:
                table.add_row(f"held out: {escape(task.task)}", str(task.k), *_task_cells(results, position))
        for name, members in (("held out", held_out), ("trained", trained)):
            means = [_pair(result.mean_of(members), result.mean_of(members, union=True)) for result in results]
            table.add_row(f"mean {escape(name)}", "", *means)
        table.add_section()
    for family in _FAMILIES:
        means = [_pair(result.mean(family), result.mean(family, union=True)) for result in results]
        table.add_row(f"mean {escape(family)}", "", *means)
    table.add_row("[bold]mean[/]", "", *(_pair(result.mean(), result.mean(union=True)) for result in results))
    return table


def _task_cells(results: Sequence[Result], position: int) -> list[str]:
    return [_pair(result.tasks[position].local, result.tasks[position].union) for result in results]


def _costs(results: Sequence[Result]) -> Table:
    fallen = any(task.costs.fell_back for result in results for task in result.tasks)
    table = Table("what it costs", *_COSTS, *(["fell back"] if fallen else []))
    for result in results:
        table.add_row(escape(result.name), *_cost_cells(result.tasks, fallen=fallen))
    for result in results:
        if result.name == "trace":
            table.add_section()
            for task in result.tasks:
                table.add_row(f"trace, {escape(task.task)}", *_cost_cells([task], fallen=fallen))
    return table


def _cost_cells(tasks: Sequence[TaskResult], *, fallen: bool) -> list[str]:
    """fallen: whether the table says how many queries fell back to their bypass embedding."""
    costs = [task.costs for task in tasks]
    queries, seconds = sum(cost.queries for cost in costs), sum(cost.seconds for cost in costs)
    accuracies = [task.trace_accuracy for task in tasks if task.trace_accuracy is not None]
    return [
        f"{sum(cost.reasoned for cost in costs) / max(1, queries):.1%}",
        f"{sum(cost.tokens for cost in costs) / max(1, queries):.1f}",
        f"{queries / seconds:.0f}" if seconds else "",
        f"{1e3 * max(cost.p50_s for cost in costs):.0f}" if any(cost.p50_s for cost in costs) else "",
        f"{1e3 * max(cost.p95_s for cost in costs):.0f}" if any(cost.p95_s for cost in costs) else "",
        f"{sum(cost.cut for cost in costs):,}",
        f"{sum(accuracies) / len(accuracies):.1%}" if accuracies else "",
        *([f"{sum(cost.fell_back for cost in costs):,}"] if fallen else []),
    ]


def render_groups(title: str, groups: Sequence[Group]) -> Table:
    """Hit rates of groups of queries, beside those of `direct` and of the bypass embeddings where a group has them."""
    direct = any(group.direct_local is not None for group in groups)
    bypass = any(group.bypass_local is not None for group in groups)
    more = [*(["direct"] if direct else []), *(["without it"] if bypass else [])]
    table = Table(escape(title), "queries", "think rate", "trace", *more)
    for group in groups:
        cells = [f"{group.queries:,}", f"{group.think_rate:.1%}", _pair(group.local, group.union)]
        if direct:
            cells.append(_pair(group.direct_local, group.direct_union))
        if bypass:
            cells.append(_pair(group.bypass_local, group.bypass_union))
        table.add_row(escape(group.name), *cells)
    return table


def _swaps(swaps: Sequence[Swap]) -> Table:
    table = Table("swap test: queries that reasoned, after", "queries", "cosine to own", "hit@k", "another first result")
    for swap in swaps:
        cells = (f"{swap.queries:,}", f"{swap.cosine:.3f}", _pair(swap.local, swap.union), f"{swap.first_changed:.1%}")
        table.add_row(escape(swap.trace), *cells)
    return table


def _pair(local: float | None, union: float | None) -> str:
    if local is None:
        return ""
    return f"{100 * local:.1f}" + (f" / {100 * union:.1f}" if union is not None else "")
