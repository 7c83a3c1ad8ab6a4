"""The numbers of an evaluation: a table's rows and columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.traces.families import family_of
from schemas.mbeir import DatasetTask
from trainer.embedding.queries import QueryCosts


@dataclass(frozen=True, slots=True)
class TaskResult:
    """A dataset-task: hit rates at the headline k, and what its queries cost."""

    task: str
    k: int
    local: float
    union: float | None
    costs: QueryCosts
    trace_accuracy: float | None = None
    """Share of the queries with a known right answer whose own trace ends in it."""
    unreadable: int = 0
    """Queries left out because their images cannot be read. They count as misses; `costs` does not count them."""


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    tasks: list[TaskResult]

    def mean(self, family: str | None = None, *, union: bool = False) -> float:
        """Unweighted mean over the dataset-tasks (of a family)."""
        rates = [
            rate
            for task in self.tasks
            if family in (None, family_of(DatasetTask.parse(task.task).task_id).name)
            for rate in [task.union if union else task.local]
            if rate is not None
        ]
        return float(np.mean(rates)) if rates else float("nan")

    @property
    def think_rate(self) -> float:
        return sum(t.costs.reasoned for t in self.tasks) / max(1, sum(t.costs.queries for t in self.tasks))


def as_json(results: Sequence[Result]) -> str:
    def plain(result: Result) -> dict[str, Any]:
        return {"name": result.name, "tasks": [asdict(t) | {"costs": t.costs._asdict()} for t in result.tasks]}

    return json.dumps([plain(result) for result in results], indent=1)
