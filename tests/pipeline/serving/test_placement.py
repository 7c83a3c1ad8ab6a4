from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.serving.placement import Demand, explain_misfit, plan


def nodes(*gpus: int) -> dict[str, int]:
    return {f"n{number}": count for number, count in enumerate(gpus)}


def counts(free: dict[str, int], *demands: Demand) -> tuple[int, ...] | None:
    found = plan(free, demands)
    return None if found is None else tuple(len(places) for places in found)


@pytest.mark.parametrize(
    ("free", "demands", "found"),
    [
        (nodes(8), [Demand("t", 4)], (2,)),
        (nodes(6, 6), [Demand("t", 4)], (2,)),  # 12 GPUs, but not three times four on one node
        (nodes(8, 8), [Demand("t", 16)], None),
        (nodes(6, 6), [Demand("t", 4, 3)], None),
        (nodes(8, 8), [Demand("t", 4, 3)], (3,)),
        (nodes(8), [Demand("t", 4), Demand("v", 4)], (1, 1)),
        (
            nodes(8),
            [Demand("t", 4), Demand("v", 1)],
            (1, 4),
        ),  # one for the verifier, then the teacher's, then the rest for the verifier
        (nodes(8, 8), [Demand("t", 4), Demand("v", 2)], (3, 2)),
        (nodes(8), [Demand("t", 4, 2), Demand("v", 1)], None),
        (nodes(8), [Demand("t", 4), Demand("v", 1, 2)], (1, 2)),
        (nodes(4), [Demand("t", 4), Demand("v", 4)], None),
        (nodes(0), [Demand("t", 1)], None),
        (nodes(), [Demand("t", 1)], None),
        (nodes(4), [Demand("t", 4), Demand("v", 0)], (1, 1)),
        (nodes(4), [Demand("t", 0), Demand("v", 2)], (1, 2)),
        (nodes(5, 6), [Demand("t", 3, 1), Demand("v", 2, 4)], (1, 4)),  # the teacher's on the node of five: exact, not greedy
    ],
)
def test_the_number_of_servers_that_fit(free: dict[str, int], demands: list[Demand], found: tuple[int, ...] | None) -> None:
    assert counts(free, *demands) == found


def most(free: list[int], first: int, second: int, left: int) -> int:
    """Finds by exhaustive search the most of the second beside `left` of the first, or -1."""
    if not free:
        return 0 if left == 0 else -1
    best = -1
    for here in range(min(left, free[0] // first) + 1):
        rest = most(free[1:], first, second, left - here)
        if rest >= 0:
            best = max(best, rest + (free[0] - here * first) // second)
    return best


@given(
    free=st.lists(st.integers(0, 9), max_size=4),
    first=st.tuples(st.integers(1, 5), st.none() | st.integers(1, 4)),
    second=st.tuples(st.integers(1, 5), st.none() | st.integers(1, 4)),
)
def test_a_plan_is_valid_and_is_refused_only_if_none_exists(
    free: list[int], first: tuple[int, int | None], second: tuple[int, int | None]
) -> None:
    demands = [Demand("t", *first), Demand("v", *second)]
    found = plan(nodes(*free), demands)
    least = second[1] or 1
    fitting = [i for i in range(1, 40) if (first[1] in (None, i)) and most(free, first[0], second[0], i) >= least]
    if found is None:
        assert not fitting
        return
    assert len(found[0]) == max(fitting)
    assert len(found[1]) == (second[1] or most(free, first[0], second[0], max(fitting)))
    used: Counter[str] = Counter()
    for demand, places in zip(demands, found, strict=True):
        for place in places:
            used[place] += demand.gpus
    assert all(used[name] <= count for name, count in nodes(*free).items())


def test_refusals_name_the_gpus_of_the_nodes() -> None:
    problem, remedy = explain_misfit(nodes(8, 8, 0), [Demand("teacher", 16)])
    assert "tensor_parallel_size 16 is more than any node has (2 nodes of 8 GPUs)" in problem
    assert "teacher.server.tensor_parallel_size to 8 or less" in remedy
    problem, remedy = explain_misfit(nodes(8, 4), [Demand("teacher", 4, 2), Demand("verifier", 8)])
    assert "teacher: 2 servers of 4 GPUs" in problem
    assert "verifier: as many servers as fit of 8 GPUs" in problem
    assert "(1 node of 8 GPUs, 1 node of 4)" in problem
    assert "lower teacher.server.count or tensor_parallel_size" in remedy
    assert "verifier.server.count" not in remedy  # it needs only one
    # the number of heads is not divisible by six
    assert "to 4 or less" in explain_misfit(nodes(6, 6), [Demand("teacher", 8)])[1]
    assert "no node of the Ray cluster has a GPU" in explain_misfit(nodes(0), [Demand("teacher", 1)])[0]
