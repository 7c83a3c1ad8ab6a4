"""Terminal tables of an evaluation."""

from __future__ import annotations

import pytest
from rich.console import Console, RenderableType

from schemas.mbeir import DatasetTask
from trainer.evaluation.diagnostics import Diagnostics, Group, Swap
from trainer.evaluation.tables import render_diagnostics, render_scores
from trainer.evaluation.uniir import Score

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
