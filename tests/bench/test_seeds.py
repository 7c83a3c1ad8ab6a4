"""The table over seeds: means with least and greatest, groups apart, from the files of runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.seeds import hit_rows, main, over_seeds, suite_rows
from schemas.errors import InputError
from trainer.embedding.queries import QueryCosts
from trainer.evaluation.results import Result, TaskResult, as_json
from trainer.zero_shot.columns import Column, Means
from trainer.zero_shot.results import SuiteResults, suite_directory

COSTS = QueryCosts(queries=10, reasoned=4, cut=0, tokens=9, seconds=1.0, p50_s=0.1, p95_s=0.2)
HELD = ("nights_task4",)


def means(value: float, queries: int) -> Means:
    return Means(queries=queries, parts={}, macro={"R@1": value}, micro={"R@1": value})


def column(name: str, value: float, unseen: float) -> Column:
    groups = {"all": means(value, 8), "unseen": means(unseen, 2)}
    counts = {"reasoned": 2, "cut": 0, "tokens": 5, "unreadable_queries": 0, "unreadable_candidates": 0}
    return Column(column=name, metric="R@1", groups=groups, **counts)  # type: ignore[arg-type]


def write_run(run: Path, nights: float, cirr: float, vist: float | None = None, *, base: bool = False) -> Path:
    tasks = [TaskResult("nights_task4", 5, nights, None, COSTS), TaskResult("cirr_task7", 5, cirr, cirr / 2, COSTS)]
    (run / "eval").mkdir(parents=True)
    names = ["base", "trace"] if base else ["trace"]
    (run / "eval" / "results_test.json").write_text(as_json([Result(name, tasks) for name in names], HELD))
    if vist is not None:
        for variant, route, value in (("direct", "bypass", vist / 2), ("trace", "adaptive", vist), ("trace", "bypass", vist)):
            directory = suite_directory(run, variant, route)
            directory.mkdir(parents=True)
            kept = SuiteResults(route=route, variant=variant, columns=[column("VIST", value, value / 2), column("CIRCO", 0, 0)])
            (directory / "results.json").write_text(kept.model_dump_json())
    return run


def test_a_figure_is_the_mean_with_least_and_greatest() -> None:
    assert over_seeds([0.2, 0.4, float("nan")]) == "30.0 (20.0-40.0)"
    assert over_seeds([0.25], 1) == "25.0"
    assert over_seeds([0.25], 3) == "25.0 [one seed]"
    assert over_seeds([float("nan")]) == ""


def test_the_whole_table_comes_from_the_runs_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / "a", 0.2, 0.6, 0.5, base=True), write_run(tmp_path / "b", 0.4, 0.8, 0.7)]
    main(runs, markdown=True)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if line]
    local, union, suite = (
        i for i, line in enumerate(lines) if line[0] in ("local pools", "union of all pools", "zero-shot suite")
    )
    assert lines[local][-4:] == ["held out (nights_task4)", "trained", "mean", "think rate"]
    by_name = {line[0]: line for line in lines[local:union]}
    assert by_name["trace"][-4:] == ["30.0 (20.0-40.0)", "70.0 (60.0-80.0)", "50.0 (40.0-60.0)", "40.0%"]
    assert by_name["base (one seed)"][-4:] == ["20.0", "60.0", "40.0", "40.0%"]
    assert {line[0]: line[-4:-1] for line in lines[union:suite]}["trace"] == ["", "35.0 (30.0-40.0)", "35.0 (30.0-40.0)"]
    assert lines[suite] == ["zero-shot suite", "trace", "trace, bypass", "direct"]
    assert lines[suite + 2 :] == [
        ["VIST (R@1)", "60.0 (50.0-70.0)", "60.0 (50.0-70.0)", "30.0 (25.0-35.0)"],
        ["VIST, unseen", "30.0 (25.0-35.0)", "30.0 (25.0-35.0)", "15.0 (12.5-17.5)"],
        ["CIRCO (R@1)", "0.0 (0.0-0.0)", "0.0 (0.0-0.0)", "0.0 (0.0-0.0)"],
        ["CIRCO, unseen", "0.0 (0.0-0.0)", "0.0 (0.0-0.0)", "0.0 (0.0-0.0)"],
        ["mean of columns", "30.0 (25.0-35.0)", "30.0 (25.0-35.0)", "15.0 (12.5-17.5)"],
        ["think rate", "25.0 (25.0-25.0)", "25.0 (25.0-25.0)", "25.0 (25.0-25.0)"],
    ]


def test_runs_that_leave_out_other_tasks_are_not_averaged() -> None:
    tasks = [{"task": "nights_task4", "local": 0.1, "union": None, "costs": {"reasoned": 0, "queries": 1}}]
    held = [{"name": "trace", "tasks": [tasks[0] | {"held_out": True}]}]
    with pytest.raises(InputError, match="leave out different dataset-tasks"):
        hit_rows([[{"name": "trace", "tasks": tasks}], held], "local")


def test_a_suite_that_some_runs_lack_says_how_many_have_it(tmp_path: Path) -> None:
    one = SuiteResults(route="adaptive", variant="trace", columns=[column("VIST", 0.5, 0.1)])
    _, rows = suite_rows([[one], []])
    assert rows[0] == ["VIST (R@1)", "50.0 [one seed]"]
