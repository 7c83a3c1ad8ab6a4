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
    """What the teacher wrote about queries, by record id."""

    traces: dict[str, str]
    answers: dict[str, str]
    complexity: dict[str, float]
    """P(complex), where it was asked for."""


def teacher_traces(dataset: str, split: str) -> TeacherTraces:
    """Of a dataset that was built on the evaluation's split. Raises InputError for others."""
    records = Records.load(dataset)
    if records.split != split:
        raise InputError(
            f"evaluation.teacher_trace_dataset: {dataset} was built on {records.split}, and {split} is evaluated",
            f"build it with --set input.split={split}, or set evaluation.teacher_trace_dataset: null",
        )
    rows = records.table.select(["id", "answer"]).to_pylist()
    return TeacherTraces(
        records.traces(), {row["id"]: row["answer"] for row in rows if row["answer"]}, assessments(local_directory(dataset))
    )


def assessments(dataset: Path) -> dict[str, float]:
    """P(complex) by record id, of queries that the teacher assessed."""
    found: dict[str, float] = {}
    for path in sorted((dataset / "data").glob("*.parquet")):
        if "assessment" in pq.read_schema(path).names:
            table = pq.read_table(path, columns=["id", "assessment"])
            found |= dict(zip(table["id"].to_pylist(), table["assessment"].to_pylist(), strict=True))
    return {identifier: p for identifier, p in found.items() if p is not None}
