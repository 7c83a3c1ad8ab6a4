"""The suite's table: a column's parts, their mean (macro) and the mean over queries (micro), for all, seen and unseen queries.

A mean over parts takes those that have queries of the group; n says how many queries those are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from schemas.errors import InputError
from schemas.training import Variant
from trainer.zero_shot.contamination import Marks
from trainer.zero_shot.run import Scored
from trainer.zero_shot.scorers import Values, summarise

ALL: Final = "all"
SEEN: Final = "seen"
UNSEEN: Final = "unseen"
OWN_ROUTE: Final = {"trace": "adaptive", "direct": "bypass", "always-reason": "reason"}
"""Variant -> the route that it was trained for."""


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


class SuiteResults(BaseModel):
    """The contents of `results.json`: one embedder on the suite."""

    route: str
    variant: str
    columns: list[Column]

    @property
    def name(self) -> str:
        """As a table's column: the variant, with its route where that is not its own."""
        return self.variant if self.route == OWN_ROUTE.get(self.variant) else f"{self.variant}, {self.route}"


def suite_directory(run: Path, variant: str, route: str) -> Path:
    """Where a run's results are kept."""
    return run / "zero-shot" / f"{variant}-{route}"


def read_results(run: Path) -> list[SuiteResults]:
    """What is kept beside a run: TRACE first, then its controls. Raises InputError for a file that is damaged."""
    found = []
    for path in sorted((run / "zero-shot").glob("*/results.json")):
        try:
            found.append(SuiteResults.model_validate_json(path.read_bytes()))
        except ValidationError as error:
            raise InputError(
                f"{path} is not what `zero-shot run` writes: {error.errors()[0]['msg']}", "remove it and run it again"
            ) from error
    order = get_args(Variant)
    return sorted(found, key=lambda one: (order.index(one.variant) if one.variant in order else len(order), one.route))


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
