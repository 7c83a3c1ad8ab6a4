"""UniIR's files and numbers: embeddings on disk, hit rates, run files and the final table.

Source: UniIR's ``mbeir_retriever.py`` and ``mbeir_embedder.py``. "Recall@k" is a hit rate there: 1 if any relevant candidate is
among the first k, averaged over the query embeddings of a file and rounded to four digits. Queries that an evaluation listed as
unreadable beside their file's embeddings count as misses; UniIR's code does not know of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.mbeir.layout import Layout
from pipeline.mbeir.qrels import read_qrels
from schemas.errors import InputError
from schemas.mbeir import DATASET_TASKS, DatasetTask, EvaluationSplit, hash_did, unhash_did, unhash_qid
from trainer.data.exclusions import load_exclusions
from trainer.embedding.files import EmbeddingFiles, Embeddings, exclusions_path, load_embeddings, pool_name
from trainer.retrieval.topk import MISSING, TopK, top_k_each

Pool = Literal["single", "union"]

USUAL_KS: Final = (1, 5, 10)
FASHION_KS: Final = (10, 20, 50)
_FASHION: Final = frozenset({DatasetTask("fashion200k", 0), DatasetTask("fashion200k", 3), DatasetTask("fashioniq", 7)})

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


def metric_ks(task: DatasetTask) -> tuple[int, ...]:
    """1, 5, 10; for Fashion200K and FashionIQ 10, 20, 50."""
    return FASHION_KS if task in _FASHION else USUAL_KS


def headline_k(task: DatasetTask) -> int:
    """The k that papers report."""
    return 10 if task in _FASHION else 5


@dataclass(frozen=True, slots=True)
class Score:
    """One value of the table, before local and union values are joined into rows."""

    task: DatasetTask
    split: EvaluationSplit
    pool: Pool
    k: int
    value: float


def hit_rates(
    ids_QK: NDArray[np.int64], relevant: Sequence[set[int]], ks: Sequence[int], *, unreadable: int = 0
) -> dict[int, float]:
    """k -> share of queries with a relevant id among the first k.

    ids_QK: ids of the hits, at least max(ks) of them, best first. unreadable: queries that have no embedding and are misses.
    """
    rank_Q = np.full(len(ids_QK) + unreadable, np.inf)
    for query, (ids_K, wanted) in enumerate(zip(ids_QK, relevant, strict=True)):
        rank = next((rank for rank, identifier in enumerate(ids_K.tolist()) if identifier in wanted), None)
        if rank is not None:
            rank_Q[query] = rank
    return {k: round(float(np.mean(rank_Q < k)), 4) for k in ks}


class TaskHits(NamedTuple):
    """A task's queries searched in a pool. ids: of the hits, (queries, k)."""

    scores: list[Score]
    top_k: TopK
    ids: NDArray[np.int64]


def score_tasks(
    queries: Mapping[DatasetTask, Embeddings],
    split: EvaluationSplit,
    pool: Pool,
    *,
    candidates: Sequence[Embeddings],
    qrels: Path,
    device: str,
) -> Iterator[tuple[DatasetTask, TaskHits]]:
    """Searches all tasks' queries in one pass over the candidates.

    candidates: concatenated in the order given, as UniIR does for the union pool. qrels: the split's directory.
    """
    relevant = {task: _relevant(qrels / qrels_name(task, split), of_task.ids) for task, of_task in queries.items()}
    for task, of_task in queries.items():
        for part in candidates:
            if part.vectors.shape[1] != of_task.vectors.shape[1]:
                raise InputError(
                    f"queries of {task.name} have {of_task.vectors.shape[1]} dimensions, the pool {part.vectors.shape[1]}",
                    "embed both with the same model",
                )
    searches = [(of_task.read_all(), max(metric_ks(task))) for task, of_task in queries.items()]
    results = top_k_each(searches, (block for part in candidates for block in part.read_blocks()), device=device)
    pool_ids = np.concatenate([part.ids for part in candidates])
    for (task, of_task), result in zip(queries.items(), results, strict=True):
        ids_QK = np.where(result.positions == MISSING, MISSING, pool_ids[result.positions])
        unreadable = len(load_exclusions(exclusions_path(of_task.path)))
        rates = hit_rates(ids_QK, relevant[task], metric_ks(task), unreadable=unreadable)
        yield task, TaskHits([Score(task, split, pool, k, value) for k, value in rates.items()], result, ids_QK)


def run_name(task: DatasetTask, pool: Pool, split: EvaluationSplit) -> str:
    """A run's id, and its file's name before ``_run.txt``."""
    return f"mbeir_{task.name}_{pool}_pool_{split}_k{max(metric_ks(task))}"


def qrels_name(task: DatasetTask, split: EvaluationSplit) -> str:
    return f"mbeir_{task.name}_{split}_qrels.txt"


def _relevant(qrels: Path, query_ids: NDArray[np.int64]) -> list[set[int]]:
    wanted: dict[str, set[int]] = {}
    for qrel in read_qrels(qrels):
        if qrel.relevance > 0:
            wanted.setdefault(qrel.qid, set()).add(hash_did(qrel.did))
    qids = [unhash_qid(hashed) for hashed in query_ids.tolist()]
    if (missing := next((qid for qid in qids if qid not in wanted), None)) is not None:
        raise InputError(f"{qrels} has no line for the query {missing}", "the embeddings belong to other queries")
    return [wanted[qid] for qid in qids]


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
