"""What TRACE is compared with on the same weights: other routes, and the teacher's traces."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.errors import InputError
from schemas.mbeir import Modality
from schemas.record import record_id
from trainer.data.batch_sampler import rng_for
from trainer.data.dataset import Records
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


def teacher_traces(dataset: str, split: str) -> tuple[dict[str, str], dict[str, str]]:
    """(traces, answers) by record id, of a dataset that was built on the evaluation's split. Raises InputError for others."""
    records = Records.load(dataset)
    if records.split != split:
        raise InputError(
            f"evaluation.teacher_trace_dataset: {dataset} was built on {records.split}, and {split} is evaluated",
            f"build it with --set input.split={split}, or set evaluation.teacher_trace_dataset: null",
        )
    rows = records.table.select(["id", "answer"]).to_pylist()
    return records.traces(), {row["id"]: row["answer"] for row in rows if row["answer"]}
