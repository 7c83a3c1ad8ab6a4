"""UniIR's files: run files, and the final table. Embeddings are scored task by task (`hit_rates`).

Source: UniIR's ``mbeir_retriever.py`` and ``mbeir_embedder.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.mbeir.layout import Layout
from schemas.errors import InputError
from schemas.mbeir import DATASET_TASKS, DatasetTask, EvaluationSplit, unhash_did, unhash_qid
from trainer.data.exclusions import load_exclusions
from trainer.embedding.files import EmbeddingFiles, Embeddings, exclusions_path, load_embeddings, pool_name
from trainer.evaluation.hit_rates import Pool, Score, metric_ks, score_tasks
from trainer.retrieval.topk import TopK

HEADER: Final = ("TaskID", "Task", "Dataset", "Split", "Metric", "CandPool", "Value", "UnionPool", "UnionValue")
TASK_NAMES: Final = {
    0: "text -> image",
    1: "text -> text",
    2: "text -> image,text",
    3: "image -> text",
    4: "image -> image",
    6: "image,text -> text",
    7: "image,text -> image",
    8: "image,text -> image,text",
}


def run_name(task: DatasetTask, pool: Pool, split: EvaluationSplit) -> str:
    """A run's id, and its file's name before ``_run.txt``."""
    return f"mbeir_{task.name}_{pool}_pool_{split}_k{max(metric_ks(task))}"


def format_run(
    task: DatasetTask, hits: TopK, ids_QK: NDArray[np.int64], query_ids: NDArray[np.int64], run: str
) -> Iterator[str]:
    """Lines ``qid Q0 did rank score run_id task_id``, with ranks from 1."""
    for qid, dids_K, scores_K in zip(query_ids.tolist(), ids_QK.tolist(), hits.scores, strict=True):
        for rank, (did, value) in enumerate(zip(dids_K, scores_K, strict=True), 1):
            yield f"{unhash_qid(qid)} Q0 {unhash_did(did)} {rank} {value} {run} {task.task_id}"


def format_table(scores: Sequence[Score]) -> str:
    """UniIR's tab-separated table, in its order and with its line ends. A union value is joined onto its local row."""
    union: Mapping[tuple[DatasetTask, EvaluationSplit, int], float] = {
        (score.task, score.split, score.k): score.value for score in scores if score.pool == "union"
    }
    local = sorted(
        (score for score in scores if score.pool == "single"),
        key=lambda score: (score.task.task_id, DATASET_TASKS.index(score.task), score.split != "val", score.k),
    )
    lines = ["\t".join(HEADER)]
    for score in local:
        joined = union.get((score.task, score.split, score.k))
        cells = (
            score.task.task_id,
            TASK_NAMES[score.task.task_id],
            score.task.name,
            score.split,
            f"Recall@{score.k}",
            pool_name(score.task, score.split),
            score.value,
            "union" if joined is not None else "",
            joined if joined is not None else "",
        )
        lines.append("\t".join(map(str, cells)))
    return "\r\n".join(lines) + "\r\n"


def write_table(files: EmbeddingFiles, scores: Sequence[Score], split: EvaluationSplit) -> Path:
    """Writes UniIR's table of the scores among the files, and returns its path."""
    files.tables.mkdir(parents=True, exist_ok=True)
    path = files.tables / f"eval_results_{split}.tsv"
    path.write_text(format_table(scores), newline="", encoding="utf-8")
    return path


def count_unreadable(files: EmbeddingFiles, split: EvaluationSplit) -> dict[DatasetTask, int]:
    """Tasks with queries that could not be read, and how many. `score_directory` counts them as misses."""
    counts = {task: len(load_exclusions(exclusions_path(files.queries(task, split)))) for task in files.available(split)}
    return {task: count for task, count in counts.items() if count}


def score_directory(
    files: EmbeddingFiles,
    layout: Layout,
    *,
    split: EvaluationSplit = "test",
    pools: Sequence[Pool] = ("single", "union"),
    device: str = "cpu",
) -> Iterator[tuple[list[Score], Path]]:
    """Scores every task that has query embeddings and writes its run files: (scores, run file) of each search.

    Local pools are searched one after another, then the union of all pools in one pass for all tasks.
    """
    tasks = files.available(split)
    if not tasks:
        raise InputError(
            f"no query embeddings like {files.queries(DATASET_TASKS[0], split)}",
            "check the directory, the suffix and the split",
        )
    files.runs.mkdir(parents=True, exist_ok=True)
    queries = {task: load_embeddings(files.queries(task, split), unhash_qid) for task in tasks}
    qrels = layout.root / "qrels" / split
    searches: list[tuple[Pool, list[DatasetTask], list[Embeddings]]] = []
    if "single" in pools:
        searches += [("single", [task], [load_embeddings(files.candidates(task, split))]) for task in tasks]
    if "union" in pools:
        paths = [files.candidates(task, split) for task in DATASET_TASKS]
        searches.append(("union", tasks, [load_embeddings(path) for path in paths if path.is_file()]))
    for pool, of_search, candidates in searches:
        searched = {task: queries[task] for task in of_search}
        for task, hits in score_tasks(searched, split, pool, candidates=candidates, qrels=qrels, device=device):
            run = run_name(task, pool, split)
            path = files.runs / f"{run}_run.txt"
            path.write_text("\n".join(format_run(task, hits.top_k, hits.ids, queries[task].ids, run)) + "\n", encoding="utf-8")
            yield hits.scores, path
