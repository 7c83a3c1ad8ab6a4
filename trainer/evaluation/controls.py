"""What TRACE is compared with on the same weights: other routes, and the teacher's traces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from schemas.errors import InputError
from schemas.mbeir import Modality
from schemas.record import record_id
from trainer.data.batch_sampler import rng_for
from trainer.data.dataset import Records, local_directory
from trainer.evaluation.evaluate import Evaluation


def modality_routes(evaluation: Evaluation) -> dict[str, bool]:
    """Queries of image and text reason."""
    return {
        record_id(evaluation.split, task.dataset, task.task_id, query.qid): task.query_modality is Modality.IMAGE_TEXT
        for task, file in evaluation.files.items()
        for query in file.queries
    }


def random_routes(ids: Sequence[str], rate: float, seed: int) -> dict[str, bool]:
    """The same think rate, drawn at random."""
    chosen = set(rng_for("routes", seed).permutation(len(ids))[: round(rate * len(ids))].tolist())
    return {identifier: i in chosen for i, identifier in enumerate(ids)}


class TeacherTraces(NamedTuple):
    """The teacher's output for queries, by record id."""

    traces: dict[str, str]
    answers: dict[str, str]
    complexity: dict[str, float]
    """P(complex), of queries that were assessed."""


def teacher_traces(dataset: str, split: str) -> TeacherTraces:
    """Raises InputError unless the dataset was built on the evaluation's split."""
    records = Records.load(dataset)
    if records.split != split:
        raise InputError(
            f"evaluation.teacher_trace_dataset: {dataset} was built on {records.split}, and {split} is evaluated",
            f"build it with --set input.split={split}, or set evaluation.teacher_trace_dataset: null",
        )
    answers = records.table.select(["id", "answer"]).to_pylist()
    return TeacherTraces(
        traces=records.traces(),
        answers={entry["id"]: entry["answer"] for entry in answers if entry["answer"]},
        complexity=read_assessments(local_directory(dataset)),
    )


def read_assessments(dataset: Path) -> dict[str, float]:
    """P(complex) by record id, of queries that the teacher assessed."""
    by_id: dict[str, float] = {}
    for path in sorted((dataset / "data").glob("*.parquet")):
        if "assessment" in pq.read_schema(path).names:
            table = pq.read_table(path, columns=["id", "assessment"])
            by_id |= dict(zip(table["id"].to_pylist(), table["assessment"].to_pylist(), strict=True))
    return {identifier: p for identifier, p in by_id.items() if p is not None}
