"""Quality of the pocket build against the world's ground truth: correct traces before and after each filter.

    python bench/quality.py [--build build/pocket] [--world build/pocket/world] [--json]

`right before` counts the last trace of every query that reasoned; `after screens` those that pass the rules; `after verify` the
records. Precision is the share of wrong traces among the rejected; recall is the share of wrong traces that were rejected.
`--verifier` compares ways to combine the verifier's confidences instead (most of them need `verify.form: facets`; thresholds of 0 leave
every trace with its first attempt): the share of wrong traces below the threshold that loses 5% of the right ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pocket.evaluation.build_quality import quality
from pocket.evaluation.verifier_quality import LOST, verifier_quality


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def table(title: str, rows: dict[str, dict[str, Any]]) -> Table:
    found = Table(title, "traces", "right before", "after screens", "after verify", "kept", "precision", "recall")
    for name, row in rows.items():
        keys = ("right_before", "right_after_screens", "right_after_verify", "yield", "precision", "recall")
        found.add_row(name, str(row["traces"]), *(shown(row[key]) for key in keys))
    return found


def verifier_table(title: str, ways: list[dict[str, Any]]) -> Table:
    found = Table(title, "traces", "wrong", "AUC", "threshold", f"recall at {LOST:.0%} good lost")
    for row in ways:
        auc, threshold = (f"{row[key]:.3f}" if key in row else "-" for key in ("auc", "threshold"))
        found.add_row(row["way"], str(row["traces"]), str(row["wrong"]), auc, threshold, shown(row.get("recall")))
    return found


def main(
    build: Path = Path("build/pocket"),
    world: Path = Path("build/pocket/world"),
    as_json: Annotated[bool, typer.Option("--json")] = False,
    verifier: Annotated[bool, typer.Option("--verifier")] = False,
) -> None:
    """Prints the figures of a finished build."""
    figures = verifier_quality(build, world / "truth") if verifier else quality(build, world / "truth")
    if as_json:
        typer.echo(json.dumps(figures, indent=1))
        return
    console = Console()
    if verifier:
        for family, ways in figures["families"].items():
            console.print(verifier_table(family, ways))
        console.print("a record that reasons:", ", ".join(f"{name} {count:g}" for name, count in figures["cost"].items()))
        return
    console.print(table("family", figures["families"]))
    console.print(table("dataset-task", figures["tasks"]))
    console.print(f"assessment AUC against 'needs reasoning': {figures.get('assessment_auc')}")
    policies = Table("policy", "think rate", "as the query needs")
    for name, row in figures["policies"].items():
        policies.add_row(name, shown(row["think_rate"]), shown(row["right"]))
    console.print(policies)


if __name__ == "__main__":
    typer.run(main)
