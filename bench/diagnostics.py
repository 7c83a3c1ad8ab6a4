"""Explains an evaluation by the pocket world's truth: hit rates by kind of reasoning, by right and wrong
traces, and by what no training query has.

    python -m bench.diagnostics RUN... [--world build/pocket/world]

Several runs (seeds) are pooled. "without it": the bypass embedding of the same query and weights (`evaluation.swap_test`).
What needs no truth is printed by `mbeir-cot eval`; `bench.routes` compares the routes with what the queries need.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mbeir_cot.options import choose
from pocket.evaluation.trace_quality import group_by_truth
from schemas.mbeir import SPLITS
from trainer.evaluation.tables import render_groups


def main(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")],
    world: Path = Path("build/pocket/world"),
    split: str = "test",
    suffix: Annotated[str, typer.Option(help="Which row of the evaluation, as its files are named.")] = "trace",
) -> None:
    """Prints hit@k in per cent: local pools / union of all pools, means over queries."""
    known = choose("--split", split, SPLITS)
    found = group_by_truth(runs, world, "val" if known == "val" else "test", suffix)
    console = Console(width=120)
    console.print(render_groups(f"{suffix}, by kind of reasoning", found.by_kind))
    console.print(render_groups(f"{suffix}, by its own trace", found.by_trace))
    console.print(render_groups(f"{suffix}, questions about entities", found.by_unseen))
    console.print(f"confidence of right against wrong traces: AUC {found.confidence_auc:.3f}")


if __name__ == "__main__":
    typer.run(main)
