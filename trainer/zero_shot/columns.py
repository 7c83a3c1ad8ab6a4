"""The suite's table: a column's parts, their mean (macro) and the mean over queries (micro), for all, seen and unseen queries.

A mean over parts takes those that have queries of the group; n says how many queries those are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from trainer.zero_shot.contamination import Marks
from trainer.zero_shot.run import Scored
from trainer.zero_shot.scorers import Values, summarise

ALL: Final = "all"
SEEN: Final = "seen"
UNSEEN: Final = "unseen"


class Means(BaseModel):
    """Of one group of queries. parts: task -> metric -> mean."""

    queries: int
    parts: dict[str, dict[str, float]]
    macro: dict[str, float]
    micro: dict[str, float]


class Column(BaseModel):
    """One column of the paper's table. metric: the one that it prints. groups: all, and where a training was looked at seen,
    unseen and each mark; a group without queries is absent."""

    column: str
    metric: str
    groups: dict[str, Means]
    reasoned: int
    cut: int
    tokens: int
    unreadable_queries: int
    unreadable_candidates: int


def columns(scored: Sequence[Scored], marks: Mapping[str, Mapping[str, Marks]] | None = None) -> list[Column]:
    """marks: task -> query id -> its marks."""
    table = []
    for name in dict.fromkeys(one.about.column for one in scored):
        parts = [one for one in scored if one.about.column == name]
        groups = {ALL: _means(parts, None)}
        if marks is not None:
            for group, chosen in _groups(parts, marks).items():
                means = _means(parts, chosen)
                if means is not None:
                    groups[group] = means
        table.append(
            Column(
                column=name,
                metric=_headline(parts[0].values),
                groups={group: means for group, means in groups.items() if means is not None},
                reasoned=sum(one.about.reasoned for one in parts),
                cut=sum(one.about.cut for one in parts),
                tokens=sum(one.about.tokens for one in parts),
                unreadable_queries=sum(one.about.unreadable_queries for one in parts),
                unreadable_candidates=sum(one.about.unreadable_candidates for one in parts),
            )
        )
    return table


def _headline(values: Values) -> str:
    """The first metric of a task is the paper's."""
    return next(iter(values))


def _groups(parts: Sequence[Scored], marks: Mapping[str, Mapping[str, Marks]]) -> dict[str, list[NDArray[np.bool_]]]:
    of = [[marks[one.about.task][identifier] for identifier in one.about.ids] for one in parts]
    seen = [np.array([one.seen for one in each], np.bool_) for each in of]
    return {
        SEEN: seen,
        UNSEEN: [~each for each in seen],
        **{
            f"same {mark}" if mark != "near" else "near-duplicate": [
                np.array([getattr(one, mark) for one in each]) for each in of
            ]
            for mark in Marks._fields
        },
    }


def _means(parts: Sequence[Scored], chosen: Sequence[NDArray[np.bool_]] | None) -> Means | None:
    kept: dict[str, Values] = {}
    count = 0
    for at, one in enumerate(parts):
        rows = np.ones(one.about.queries, np.bool_) if chosen is None else chosen[at]
        if rows.any():
            kept[one.about.task] = {metric: values[rows] for metric, values in one.values.items()}
            count += int(rows.sum())
    if not kept:
        return None
    summary = summarise(kept)
    return Means(queries=count, parts=summary.parts, macro=summary.macro, micro=summary.micro)
