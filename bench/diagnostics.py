"""Explains an evaluation by the pocket world's truth: hit rates by kind of reasoning, by right and wrong
traces, and by what no training query has.

    python -m bench.diagnostics RUN... [--world build/pocket/world]

Several runs (seeds) are pooled, and a second set of tables gives each figure with its least and greatest over the runs: with TRACE less
`direct` of the same run, the swap test, and the share of right routes and traces. "without it": the bypass embedding of the same query and weights (`evaluation.swap_test`).
What needs no truth is printed by `mbeir-cot eval`; `bench.routes` compares the routes with what the queries need, by family.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from bench.seeds import Rows, over_seeds, print_table
from mbeir_cot.options import choose
from pocket.evaluation.trace_quality import TruthGroups, group_by_truth
from schemas.mbeir import SPLITS, EvaluationSplit
from trainer.evaluation.diagnostics import Group
from trainer.evaluation.tables import render_groups

COLUMNS: Final = (
    "queries",
    "local",
    "union",
    "`direct` local",
    "`direct` union",
    "local, less `direct`",
    "union, less `direct`",
)


def _rates(groups: Sequence[Group], key: str) -> list[float]:
    """NaN where a group lacks it."""
    values = [getattr(group, key) for group in groups]
    return [float("nan") if value is None else value for value in values]


def spread_rows(runs: Sequence[Sequence[Group]]) -> Rows:
    """A row per group that all runs have: name, queries, then means over runs with least and greatest, in per cent, in the order of
    `COLUMNS`."""
    rows = []
    for group in runs[0]:
        same = [[one for one in run if one.name == group.name] for run in runs]
        if not all(same):
            continue
        groups = [found for (found,) in same]
        counts = sorted({found.queries for found in groups})
        local, union = _rates(groups, "local"), _rates(groups, "union")
        direct_local, direct_union = _rates(groups, "direct_local"), _rates(groups, "direct_union")
        columns = [
            *(local, union, direct_local, direct_union),
            [one - other for one, other in zip(local, direct_local, strict=True)],
            [one - other for one, other in zip(union, direct_union, strict=True)],
        ]
        number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
        rows.append([group.name, number, *map(over_seeds, columns)])
    return rows


def swap_rows(runs: Sequence[Path], split: str) -> Rows:
    """The swap test of `mbeir-cot eval`, in per cent, over runs; none unless all have it."""
    swaps = []
    for run in runs:
        file = run / "eval" / f"diagnostics_{split}.json"
        read = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        swaps.append({swap["trace"]: swap for swap in read.get("swap_test", [])})
    if not all(swaps):
        return []
    keys = ("cosine", "local", "union", "first_changed")
    return [[trace, *(over_seeds([run[trace][key] for run in swaps]) for key in keys)] for trace in swaps[0]]


def _print_spread(found: Sequence[TruthGroups], runs: Sequence[Path], split: str, *, markdown: bool) -> None:
    print(f"\nOver {len(found)} runs, in per cent: mean (least-greatest).\n")
    tables: dict[str, list[Sequence[Group]]] = {
        "kind of reasoning": [one.by_kind for one in found],
        "by its own trace": [[group for group in one.by_trace if group.name.startswith("needs")] for one in found],
        "questions about entities": [one.by_unseen for one in found],
    }
    for title, groups in tables.items():
        print_table(title, COLUMNS, spread_rows(groups), markdown=markdown)
    swaps = swap_rows(runs, split)
    if swaps:
        header = ("cosine to own", "local", "union", "another first result")
        print_table("after which trace", header, swaps, markdown=markdown)
    print(f"Routes right: {over_seeds([one.routes_right for one in found])}")
    print(f"Own traces right: {over_seeds([one.traces_right for one in found])}")
    print(f"AUC of confidence: {over_seeds([one.confidence_auc for one in found])}")


def main(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")],
    world: Path = Path("build/pocket/world"),
    split: str = "test",
    suffix: Annotated[str, typer.Option(help="Which row of the evaluation, as its files are named.")] = "trace",
    markdown: Annotated[bool, typer.Option("--markdown", help="Tables over several runs as a document has them.")] = False,
) -> None:
    """Prints hit@k in per cent: local pools / union of all pools, means over queries."""
    known = choose("--split", split, SPLITS)
    of_split: EvaluationSplit = "val" if known == "val" else "test"
    found = group_by_truth(runs, world, of_split, suffix)
    console = Console(width=140)
    console.print(render_groups(f"{suffix}, by kind of reasoning", found.by_kind))
    console.print(render_groups(f"{suffix}, by its own trace", found.by_trace))
    console.print(render_groups(f"{suffix}, questions about entities", found.by_unseen))
    console.print(f"confidence of right against wrong traces: AUC {found.confidence_auc:.3f}")
    if len(runs) > 1:
        _print_spread([group_by_truth([run], world, of_split, suffix) for run in runs], runs, of_split, markdown=markdown)


if __name__ == "__main__":
    typer.run(main)
