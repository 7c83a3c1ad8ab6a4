"""The spread of diagnostics over runs."""

from __future__ import annotations

import json
from pathlib import Path

from bench.diagnostics import spread_rows, swap_rows
from trainer.evaluation.diagnostics import Group


def group(name: str, local: float, direct: float | None = None, queries: int = 10) -> Group:
    return Group(
        name=name, queries=queries, think_rate=0.5, local=local, union=local / 2, direct_local=direct, direct_union=None
    )


def test_differences_are_of_the_same_run() -> None:
    runs = [[group("needs none", 0.9, 0.8), group("edit", 0.5)], [group("needs none", 0.7, 0.9, queries=12)]]
    (row,) = spread_rows(runs)  # the other group is not in both
    assert row == [
        "needs none",
        "10-12",
        "80.0 (70.0-90.0)",
        "40.0 (35.0-45.0)",
        "85.0 (80.0-90.0)",
        "",
        "-5.0 (-20.0 to 10.0)",
        "",
    ]


def test_the_swap_test_of_all_runs_or_none(tmp_path: Path) -> None:
    for name, local in (("a", 0.5), ("b", 0.7)):
        (tmp_path / name / "eval").mkdir(parents=True)
        swap = {"trace": "own", "queries": 3, "cosine": 1.0, "local": local, "union": 0.1, "first_changed": 0.0}
        (tmp_path / name / "eval" / "diagnostics_test.json").write_text(json.dumps({"swap_test": [swap]}))
    both = [tmp_path / "a", tmp_path / "b"]
    assert swap_rows(both, "test") == [["own", "100.0 (100.0-100.0)", "60.0 (50.0-70.0)", "10.0 (10.0-10.0)", "0.0 (0.0-0.0)"]]
    assert swap_rows([*both, tmp_path / "c"], "test") == []
