"""Compares TRACE's own routes and traces with the pocket world's truth.

    python -m bench.routes RUN... [--world build/pocket/world]

Prints the think rate beside the share of queries that need reasoning, how often the route is correct, and how often TRACE's trace
ends in a correct answer (see `pocket.evaluation.build_quality.is_right`). Several runs (seeds) are pooled.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pipeline.traces.families import FAMILIES, family_of
from pocket.evaluation.build_quality import is_right
from pocket.world.ground_truth import QueryTruth, load_truth
from schemas.mbeir import DatasetTask
from trainer.evaluation.query_log import queries_file, read_query_log


def answer_of(trace: str) -> str:
    """Returns the answer of a trace: its last line."""
    return trace.strip().splitlines()[-1] if trace.strip() else ""


def main(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")],
    world: Path = Path("build/pocket/world"),
    split: str = "test",
    suffix: str = "trace",
) -> None:
    """Prints a table by task family."""
    truths = {f"{t.dataset_task}/{t.qid}": t for t in load_truth(world / "truth").queries if t.split == split}
    groups: dict[str, list[tuple[dict[str, Any], QueryTruth]]] = defaultdict(list)
    for run in runs:
        for entry in read_query_log(queries_file(run / "eval", suffix, split)):
            pair = (entry, truths[f"{entry['task']}/{entry['qid']}"])
            groups["all"].append(pair)
            groups[family_of(DatasetTask.parse(entry["task"]).task_id).name].append(pair)
    table = Table("family", "queries", "need reasoning", "think rate", "right route", "traces", "right traces")
    for name in ("all", *FAMILIES):
        pairs = groups[name]
        reasoned = [(entry, truth) for entry, truth in pairs if entry["reasoned"]]
        right = sum(is_right(answer_of(entry["trace"]), truth) for entry, truth in reasoned)
        table.add_row(
            name,
            str(len(pairs)),
            f"{sum(truth.needs_reasoning for _, truth in pairs) / len(pairs):.1%}",
            f"{len(reasoned) / len(pairs):.1%}",
            f"{sum(entry['reasoned'] == truth.needs_reasoning for entry, truth in pairs) / len(pairs):.1%}",
            str(len(reasoned)),
            f"{right / len(reasoned):.1%}" if reasoned else "-",
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
