"""Hit rates of an evaluation at smaller think rates."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.think_rates import hit_rate_after, make_rows, read_rates, surest
from schemas.errors import InputError
from trainer.evaluation.run_files import Ranked

OVEN = [f"test/oven/task6/6:{n}" for n in range(3)]
NIGHTS = ["test/nights/task4/4:0"]
HIT, MISS = Ranked(1, "6:9"), Ranked(None, "6:9")


def test_the_surest_routes_keep_their_traces() -> None:
    p_direct = {"a": 0.4, "b": 0.01, "c": 0.2, "d": 0.3}
    assert surest(p_direct, 1.0) == {"a", "b", "c", "d"}
    assert surest(p_direct, 0.5) == {"b", "c"}
    assert surest(p_direct, 0.0) == frozenset()


def test_a_query_without_its_trace_has_the_ranks_of_its_bypass_embedding() -> None:
    ids = [*OVEN, *NIGHTS]
    own = dict.fromkeys(OVEN, HIT) | {NIGHTS[0]: MISS}
    bypass = dict.fromkeys(OVEN, MISS)  # of the queries that reasoned
    assert hit_rate_after(OVEN, ids, own, bypass) == pytest.approx(1 / 2)  # the mean over dataset-tasks, not over queries
    assert hit_rate_after(OVEN[:1], ids, own, bypass) == pytest.approx(1 / 6)
    assert hit_rate_after([], ids, own, bypass) == 0.0


def test_a_query_without_ranks_is_a_miss() -> None:
    assert hit_rate_after(OVEN, OVEN, {OVEN[0]: HIT}, {}) == pytest.approx(1 / 3)


def test_a_pool_that_was_not_searched_has_no_figure() -> None:
    absent = hit_rate_after(OVEN, OVEN, {}, {})
    assert make_rows([[(0.3, 0.9, absent)] * 6])[0] == ["100%", "30.0", "90.0", ""]


def test_a_row_for_each_share_over_the_seeds() -> None:
    rates = [(share * 0.3, 0.9, 0.5) for share in (1.0, 0.9, 0.75, 0.5, 0.25, 0.0)]
    other = [(think, local - 0.1, union) for think, local, union in rates]
    rows = make_rows([rates, other])
    assert [row[0] for row in rows] == ["100%", "90%", "75%", "50%", "25%", "0%"]
    assert rows[0][1:] == ["30.0 (30.0-30.0)", "85.0 (80.0-90.0)", "50.0 (50.0-50.0)"]


def test_a_run_without_evaluation_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no evaluation of TRACE on test") as raised:
        read_rates(tmp_path, tmp_path, "test")
    assert f"mbeir-cot eval {tmp_path}" in str(raised.value.remedy)
