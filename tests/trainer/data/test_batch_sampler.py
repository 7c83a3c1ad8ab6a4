from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.batch_sampler import BatchSampler, rng_for

GROUPS = st.lists(st.integers(1, 30), min_size=1, max_size=5).map(
    lambda sizes: {f"g{i}": list(range(sum(sizes[:i]), sum(sizes[: i + 1]))) for i, _ in enumerate(sizes)}
)


@given(GROUPS, st.integers(1, 12), st.integers(0, 99), st.sampled_from(["mixed", "by-task"]))
def test_every_batch_is_full_and_an_epoch_repeats_nothing(groups, batch, seed, sampling) -> None:  # type: ignore[no-untyped-def]
    order = BatchSampler(groups, batch, seed, sampling)
    epoch = order.epoch(3)
    assert len(epoch) == order.per_epoch
    assert all(len(rows) == batch for rows in epoch)
    if order.size >= batch:
        seen = Counter(np.concatenate(epoch).tolist())
        most = 1 if sampling == "mixed" or len({tuple(rows) for rows in map(sorted, epoch)}) == len(epoch) else 2
        assert max(seen.values()) <= most


@given(GROUPS, st.integers(1, 12), st.sampled_from(["mixed", "by-task"]), st.sampled_from([0.0, 0.5, 0.9]))
def test_an_epoch_keeps_its_length_with_any_balance(groups, batch, sampling, balance) -> None:  # type: ignore[no-untyped-def]
    order = BatchSampler(groups, batch, 1, sampling, balance)
    epoch = order.epoch(0)
    assert len(epoch) == order.per_epoch
    assert all(len(rows) == batch for rows in epoch)


def test_rounding_shortens_no_epoch() -> None:
    groups = {"a": list(range(98)), "b": [98], "c": [99]}  # 33 are drawn from each
    assert len(BatchSampler(groups, 10, 0, "mixed", 0.0).epoch(0)) == 10


@given(GROUPS, st.integers(1, 8), st.integers(0, 99))
def test_the_seed_alone_decides(groups, batch, seed) -> None:  # type: ignore[no-untyped-def]
    first, again = BatchSampler(groups, batch, seed), BatchSampler(dict(groups), batch, seed)
    for step in range(2 * first.per_epoch):
        assert first.batch_at(step)[0] == again.batch_at(step)[0] == step // first.per_epoch
        assert (first.batch_at(step)[1] == again.batch_at(step)[1]).all()


def test_a_batch_by_task_has_one_task() -> None:
    groups = {"a": list(range(40)), "b": list(range(40, 80))}
    for rows in BatchSampler(groups, 8, 0, "by-task").epoch(0):
        assert set(rows.tolist()) <= set(range(40)) or set(rows.tolist()) <= set(range(40, 80))


def test_balance_draws_small_groups_more_often() -> None:
    groups = {"large": list(range(90)), "small": list(range(90, 100))}
    small = [
        sum(int((rows >= 90).sum()) for rows in BatchSampler(groups, 10, 0, "mixed", balance).epoch(0))
        for balance in (1, 0.5, 0)
    ]
    assert small == [10, 25, 50]


def test_random_numbers_depend_on_every_part() -> None:
    assert rng_for("a", 1).integers(1 << 60) == rng_for("a", 1).integers(1 << 60)
    assert len({int(rng_for(*parts).integers(1 << 60)) for parts in (("a", 1), ("a", 2), ("b", 1), ("a1",))}) == 4
