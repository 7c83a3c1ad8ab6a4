"""The numbers of an evaluation: a table's rows and columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.traces.families import family_of
from schemas.mbeir import DatasetTask
from trainer.embedding.queries import QueryCosts
from trainer.embedding.query_embedding import QueryEmbedding
from trainer.evaluation.hit_rates import Score, headline_k


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


def trace_accuracy(embedded: Mapping[str, QueryEmbedding], answers: Mapping[str, str]) -> float | None:
    """Share of the queries with a known answer whose trace ends in it."""
    known = [identifier for identifier in embedded if identifier in answers]
    if not known:
        return None
    return float(np.mean([embedded[i].trace.strip().endswith(answers[i].strip()) for i in known]))


def make_task_result(
    task: DatasetTask, scores: Sequence[Score], costs: QueryCosts, *, accuracy: float | None, unreadable: int
) -> TaskResult:
    """scores: of any tasks, pools and ks."""
    k = headline_k(task)
    by_pool = {score.pool: score.value for score in scores if score.task == task and score.k == k}
    return TaskResult(task.name, k, by_pool["single"], by_pool.get("union"), costs, accuracy, unreadable)


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    tasks: list[TaskResult]

    def mean(self, family: str | None = None, *, union: bool = False) -> float:
        """Unweighted mean over the dataset-tasks (of a family)."""
        tasks = [task.task for task in self.tasks if family in (None, family_of(DatasetTask.parse(task.task).task_id).name)]
        return self.mean_of(tasks, union=union)

    def mean_of(self, tasks: Sequence[str], *, union: bool = False) -> float:
        """The same over these dataset-tasks; NaN if none was scored."""
        scored = [task.union if union else task.local for task in self.tasks if task.task in tasks]
        rates = [rate for rate in scored if rate is not None]
        return float(np.mean(rates)) if rates else float("nan")

    @property
    def think_rate(self) -> float:
        return sum(t.costs.reasoned for t in self.tasks) / max(1, sum(t.costs.queries for t in self.tasks))


def as_json(results: Sequence[Result], held_out: Sequence[str] = ()) -> str:
    """`held_out`: dataset-tasks that training left out; they are marked."""

    def plain(result: Result) -> dict[str, Any]:
        return {"name": result.name, "tasks": [marked(task) for task in result.tasks]}

    def marked(task: TaskResult) -> dict[str, Any]:
        held = {"held_out": True} if task.task in held_out else {}
        return asdict(task) | {"costs": task.costs._asdict()} | held

    return json.dumps([plain(result) for result in results], indent=1)
