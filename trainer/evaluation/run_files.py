"""Run files: for each query of an evaluation, the rank of its best positive and the first hit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pipeline.mbeir.layout import Layout
from pipeline.mbeir.qrels import read_qrels
from schemas.mbeir import DatasetTask, EvaluationSplit
from schemas.record import record_id
from trainer.embedding.files import EmbeddingFiles
from trainer.evaluation.hit_rates import Pool, qrels_name
from trainer.evaluation.uniir_files import run_name


class Ranked(NamedTuple):
    """A query's hits. rank: of the best positive, from 1; None beyond the list. first: the did at rank 1."""

    rank: int | None
    first: str


def run_file(files: EmbeddingFiles, task: DatasetTask, pool: Pool, split: EvaluationSplit) -> Path:
    """Where `uniir.score_directory` writes the hits of a task's queries."""
    return files.runs / f"{run_name(task, pool, split)}_run.txt"


def read_ranks(
    files: EmbeddingFiles, layout: Layout, tasks: Iterable[DatasetTask], pool: Pool, split: EvaluationSplit
) -> dict[str, Ranked]:
    """Record id -> the ranks of its query in a pool. Tasks without a run file are left out."""
    by_id: dict[str, Ranked] = {}
    for task in tasks:
        path = run_file(files, task, pool, split)
        qrels = layout.root / "qrels" / split / qrels_name(task, split)
        if not path.is_file() or not qrels.is_file():
            continue
        relevant = {(qrel.qid, qrel.did) for qrel in read_qrels(qrels) if qrel.relevance > 0}
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                qid, _, did, rank, *_ = line.split()
                identifier = record_id(split, task.dataset, task.task_id, qid)
                known = by_id.get(identifier, Ranked(None, did))  # lines are in the order of the ranks
                if known.rank is None and (qid, did) in relevant:
                    known = known._replace(rank=int(rank))
                by_id[identifier] = known
    return by_id
