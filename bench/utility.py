"""Does the measured utility of a trace tell which queries need one? Compares it with the pocket world's truth.

    python -m bench.utility UTILITY.PARQUET [--world build/pocket/world] [--split train]

The file is that of `mbeir-cot utility`, of a dataset in which every query has a trace.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.table import Table

from mbeir_cot.options import choose
from pocket.evaluation.skills import auc
from pocket.world.ground_truth import load_truth
from schemas.mbeir import SPLITS, DatasetTask
from schemas.record import record_id

THRESHOLDS: Final = (0.0, 0.02, 0.05, 0.1, 0.2)


def main(
    file: Annotated[Path, typer.Argument(metavar="UTILITY.PARQUET")],
    world: Path = Path("build/pocket/world"),
    split: str = "train",
) -> None:
    """Prints, in per cent, how many traces help, and by threshold how many of the queries above it need reasoning."""
    of_split = choose("--split", split, SPLITS)
    needs: dict[str, bool] = {}
    for truth in load_truth(world / "truth").queries:
        if truth.split == of_split:
            task = DatasetTask.parse(truth.dataset_task)
            needs[record_id(of_split, task.dataset, task.task_id, truth.qid)] = truth.needs_reasoning
    table = pq.read_table(file, columns=["id", "utility"])
    pairs = [
        (utility, needs[identifier])
        for identifier, utility in zip(table["id"].to_pylist(), table["utility"].to_pylist(), strict=True)
        if utility is not None and identifier in needs
    ]
    needed = [utility for utility, need in pairs if need]
    others = [utility for utility, need in pairs if not need]
    print(
        f"{len(pairs):,} queries, {len(needed):,} need reasoning; AUC {auc((u for u, _ in pairs), (n for _, n in pairs)):.3f}"
    )
    for name, utilities in (("need reasoning", needed), ("need none", others)):
        print(f"the trace helps: {sum(u > 0 for u in utilities) / max(1, len(utilities)):.1%} of those that {name}")
    shown = Table("utility above", "queries", "need reasoning")
    for threshold in THRESHOLDS:
        above = [need for utility, need in pairs if utility > threshold]
        shown.add_row(f"{threshold:g}", f"{len(above):,}", f"{sum(above) / len(above):.1%}" if above else "-")
    Console().print(shown)


if __name__ == "__main__":
    typer.run(main)
