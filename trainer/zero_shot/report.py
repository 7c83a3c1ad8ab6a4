"""The suite's results as a table of a run's report."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.report.page import Grid
from trainer.zero_shot.columns import ALL, SEEN, UNSEEN
from trainer.zero_shot.results import SuiteResults

_GROUPS = (ALL, SEEN, UNSEEN)


def suite_rows(results: Sequence[SuiteResults]) -> list[list[str]]:
    """A row for each column and group of queries that has any: name, metric, queries, then each embedder's macro mean."""
    rows = []
    names = list(dict.fromkeys(column.column for one in results for column in one.columns))
    for name in names:
        of_each = [next((column for column in one.columns if column.column == name), None) for one in results]
        for group in _GROUPS:
            means = [column.groups.get(group) if column is not None else None for column in of_each]
            known = [
                (column, one) for column, one in zip(of_each, means, strict=True) if column is not None and one is not None
            ]
            if not known:
                continue
            metric = known[0][0].metric
            cells = [f"{100 * one.macro[metric]:.1f}" if one is not None else "" for one in means]
            first = group == ALL
            rows.append([name if first else f"  {group}", metric if first else "", f"{known[0][1].queries:,}", *cells])
    return rows


def suite_grids(results: Sequence[SuiteResults]) -> list[Grid]:
    """One table; none without results."""
    if not results:
        return []
    header = ("column", "metric", "queries", *(one.name for one in results))
    note = "In per cent; means over the parts of a column. Seen: the training showed the same pair, image or text."
    return [Grid("Zero-shot suite", header, suite_rows(results), note)]
