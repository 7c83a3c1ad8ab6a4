"""Terminal tables of an evaluation."""

from __future__ import annotations

import pytest
from rich.console import Console, RenderableType

from schemas.mbeir import DatasetTask
from trainer.embedding.queries import QueryCosts
from trainer.evaluation.diagnostics import Diagnostics, Group, Swap
from trainer.evaluation.hit_rates import Score
from trainer.evaluation.results import Result, TaskResult
from trainer.evaluation.tables import render_diagnostics, render_results, render_scores

CIRR, FIQ = DatasetTask("cirr", 7), DatasetTask("fashioniq", 7)


def shown(renderable: RenderableType) -> list[str]:
    console = Console(width=160, highlight=False, emoji=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get().splitlines()


@pytest.mark.parametrize("union", [True, False])
def test_scores_are_shown_at_the_headline_k_with_their_means(union: bool) -> None:
    scores = [Score(CIRR, "test", "single", k, k / 100) for k in (1, 5, 10)]
    scores += [Score(FIQ, "test", "single", k, k / 100) for k in (10, 20, 50)]
    if union:
        scores += [Score(CIRR, "test", "union", 5, 0.02), Score(FIQ, "test", "union", 10, 0.04)]
    lines = shown(render_scores(scores))
    (cirr,) = [line for line in lines if "cirr_task7" in line]
    (mean,) = [line for line in lines if "mean" in line]
    assert [cell.strip() for cell in cirr.strip("│").split("│")] == ["cirr_task7", "5", "0.0500", "0.0200" if union else ""]
    assert [cell.strip() for cell in mean.strip("│").split("│")] == ["mean", "", "0.0750", "0.0300" if union else ""]


def test_diagnostics_show_only_the_parts_that_there_are() -> None:
    assert shown(render_diagnostics(Diagnostics())) == []
    group = Group(name="0.0 to 0.2", queries=12, think_rate=0.25, local=0.5, union=None)
    beside = Group(name="0.0 to 0.2", queries=12, think_rate=0.25, local=0.5, union=None, direct_local=0.75)
    lines = shown(render_diagnostics(Diagnostics(by_difficulty=(group,))))
    assert any("P(complex)" in line for line in lines)
    assert not any("direct" in line or "swap test" in line for line in lines)
    (row,) = [line for line in shown(render_diagnostics(Diagnostics(by_agreement=(beside,)))) if "0.0 to 0.2" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["0.0 to 0.2", "12", "25.0%", "50.0", "75.0"]
    swap = Swap(trace="none", queries=3, cosine=0.5, local=0.25, union=0.125, first_changed=1.0)
    lines = shown(render_diagnostics(Diagnostics(swap_test=(swap,))))
    assert any("25.0 / 12.5" in line and "100.0%" in line for line in lines)
    assert "means over queries" in lines[-1]


def test_groups_stand_beside_those_embeddings_that_any_of_them_has() -> None:
    plain = Group(name="no trace", queries=2, think_rate=0.0, local=0.5, union=0.25)
    both = Group(name="wrong trace", queries=4, think_rate=1.0, local=0.25, union=None, direct_local=0.75, bypass_local=1.0)
    lines = shown(render_diagnostics(Diagnostics(by_confidence=(plain, both))))
    header = [cell.strip() for cell in lines[1].strip("┃").split("┃")]
    assert header == ["trace, by the trace's confidence", "queries", "think rate", "trace", "direct", "without it"]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if "trace" in line and "│" in line]
    assert rows == [
        ["no trace", "2", "0.0%", "50.0 / 25.0", "", ""],
        ["wrong trace", "4", "100.0%", "25.0", "75.0", "100.0"],
    ]


@pytest.mark.parametrize("fell_back", [0, 2])
def test_queries_that_fell_back_are_counted_where_there_are_any(fell_back: int) -> None:
    costs = QueryCosts.of([], 0.0)._replace(queries=4, reasoned=3, fell_back=fell_back)
    lines = shown(render_results([Result("trace", [TaskResult(CIRR.name, 5, 0.5, None, costs)])], "val"))
    assert any("fell back" in line for line in lines) == bool(fell_back)
    (row,) = [line for line in lines if "trace, cirr_task7" in line]
    assert row.split("│")[-2].strip() == (str(fell_back) if fell_back else "")
