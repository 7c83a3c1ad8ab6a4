"""Tables of the suite for the terminal: its files, its scores, and what a training has seen of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from trainer.zero_shot.check import SuiteCheck
from trainer.zero_shot.columns import ALL, SEEN, UNSEEN, Column, Means
from trainer.zero_shot.contamination import MARKS
from trainer.zero_shot.report import suite_rows
from trainer.zero_shot.results import SuiteResults


def render_check(result: SuiteCheck, *, images: bool) -> RenderableType:
    """images: whether image files were looked for."""
    return Group(_checked_tasks(result, images=images), *_remarks(result))


def render_columns(columns: Sequence[Column]) -> RenderableType:
    """Each column with its mean over parts (macro) and over queries (micro), then its parts."""
    groups = [name for name in (ALL, SEEN, UNSEEN) if any(name in column.groups for column in columns)]
    table = Table("column", "metric", *(f"{escape(name)} (n)" for name in groups), "think rate", "unreadable", box=None)
    for column in columns:
        _add_column(table, column, groups)
    return Group(
        table,
        "in per cent; unreadable: queries, which are misses + candidates, which cannot be found",
        *(
            f"note: {escape(column.column)}: for {tied:.1%} of the queries another scores as much as the target, which wins"
            for column in columns
            if (tied := column.groups[ALL].micro.get("tied", 0)) > 0
        ),
    )


def render_suite(results: Sequence[SuiteResults]) -> RenderableType:
    """The macro means of several embedders side by side, for all, seen and unseen queries."""
    table = Table("zero-shot suite", "metric", "queries", *(escape(one.name) for one in results))
    for row in suite_rows(results):
        table.add_row(*map(escape, row))
    return Group(table, "in per cent, mean over the parts of a column; seen: training showed the same pair, image or text")


def render_contamination(counts: Mapping[str, Mapping[str, int]]) -> RenderableType:
    """counts: of `contamination.count_marks`."""
    opened = any("unreadable" in count for count in counts.values())
    unread = ("unreadable", "of the training") if opened else ()
    table = Table("task", "queries", "same pair", "same image", "same text", "near", "any", *unread, box=None)
    for name, count in counts.items():
        total = max(1, count["queries"])
        marks = (f"{count[mark]:,} ({count[mark] / total:.0%})" for mark in MARKS)
        pictures = (f"{count['unreadable']:,}", f"{count['training_unreadable']:,}") if opened else ()
        table.add_row(escape(name), f"{total:,}", *marks, *pictures)
    return table


def _checked_tasks(result: SuiteCheck, *, images: bool) -> Table:
    table = Table("task", "column", "queries", "candidates", "images", "missing", box=None)
    for task in result.tasks:
        counts = (f"{task.images:,}", f"{task.missing:,}") if images else ("", "")
        table.add_row(escape(task.task), escape(task.column), f"{task.queries:,}", f"{task.candidates:,}", *counts)
    return table


def _remarks(result: SuiteCheck) -> Iterator[RenderableType]:
    for task in result.tasks:
        yield from (f"[bold red]error:[/] {escape(f'{task.task}: {problem}')}" for problem in task.problems)
        yield from (f"note: {escape(f'{task.task}: {note}')}" for note in task.notes)
    for name, files in result.absent.items():
        yield f"not there: {escape(name + ': ' + ', '.join(files))}"
    if not result.tasks:
        yield "nothing found: `mbeir-cot zero-shot list` names the files and where they come from"


def _add_column(table: Table, column: Column, groups: Sequence[str]) -> None:
    everything = column.groups[ALL]
    several = len(everything.parts) > 1
    embedded = everything.queries - column.unreadable_queries
    macro = [_cell(column.groups.get(group), column.metric, micro=False) for group in groups]
    table.add_row(
        escape(f"{column.column}, macro" if several else column.column),
        escape(column.metric),
        *macro,
        f"{column.reasoned / max(1, embedded):.0%}",
        f"{column.unreadable_queries:,} + {column.unreadable_candidates:,}",
    )
    if not several:
        return
    table.add_row("  micro", "", *(_cell(column.groups.get(group), column.metric, micro=True) for group in groups), "", "")
    for part in everything.parts:
        cells = [
            f"{100 * means.parts[part][column.metric]:.1f}"
            if (means := column.groups.get(group)) is not None and part in means.parts
            else ""
            for group in groups
        ]
        table.add_row(f"  {escape(part)}", "", *cells, "", "")


def _cell(means: Means | None, metric: str, *, micro: bool) -> str:
    if means is None:
        return ""
    value = (means.micro if micro else means.macro)[metric]
    return f"{100 * value:.1f} ({means.queries:,})"
