"""UniIR's files and numbers: embeddings on disk, hit rates, run files and the final table.

Source: UniIR's ``mbeir_retriever.py`` and ``mbeir_embedder.py``. "Recall@k" is a hit rate there: 1 where any relevant
candidate is among the first k; averaged over the query embeddings of a file and rounded to four digits.
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
from schemas.mbeir import DATASET_TASKS, DatasetTask, hash_did, unhash_did, unhash_qid
from trainer.embedding.files import EmbeddingFiles, Embeddings, Split, load_embeddings, pool_name
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
    """One line of the table before local and union values are joined."""

    task: DatasetTask
    split: Split
    pool: Pool
    k: int
    value: float


def hit_rates(found: NDArray[np.int64], relevant: Sequence[set[int]], ks: Sequence[int]) -> dict[int, float]:
    """k -> share of queries with a relevant id among the first k. `found`: ids of shape (queries, at least max(ks))."""
    first = np.full(len(found), np.inf)
    for row, (ids, wanted) in enumerate(zip(found, relevant, strict=True)):
        place = next((i for i, identifier in enumerate(ids.tolist()) if identifier in wanted), None)
        if place is not None:
            first[row] = place
    return {k: round(float(np.mean(first < k)), 4) for k in ks}


class Hits(NamedTuple):
    """What the queries of a task find in a pool. ids: (queries, k)."""

    scores: list[Score]
    found: TopK
    ids: NDArray[np.int64]


def score_tasks(
    asked: Mapping[DatasetTask, Embeddings],
    split: Split,
    pool: Pool,
    *,
    candidates: Sequence[Embeddings],
    qrels: Path,
    device: str,
) -> Iterator[tuple[DatasetTask, Hits]]:
    """Each task's queries searched in one pass over the candidates, which are concatenated in the order given, as UniIR does
    for the union pool. `qrels`: the split's directory."""
    relevant = {task: _relevant(qrels / qrels_name(task, split), queries.ids) for task, queries in asked.items()}
    for task, queries in asked.items():
        for one in candidates:
            if one.vectors.shape[1] != queries.vectors.shape[1]:
                raise InputError(
                    f"queries of {task.name} have {queries.vectors.shape[1]} dimensions, the pool {one.vectors.shape[1]}",
                    "embed both with the same model",
                )
    sets = [(queries.normalised(), max(metric_ks(task))) for task, queries in asked.items()]
    every = top_k_each(sets, (block for one in candidates for block in one.blocks()), device=device)
    pool_ids = np.concatenate([one.ids for one in candidates])
    for task, found in zip(asked, every, strict=True):
        ids = np.where(found.positions == MISSING, MISSING, pool_ids[found.positions])
        rates = hit_rates(ids, relevant[task], metric_ks(task))
        yield task, Hits([Score(task, split, pool, k, value) for k, value in rates.items()], found, ids)


def qrels_name(task: DatasetTask, split: Split) -> str:
    return f"mbeir_{task.name}_{split}_qrels.txt"


def _relevant(qrels: Path, query_ids: NDArray[np.int64]) -> list[set[int]]:
    wanted: dict[str, set[int]] = {}
    for qrel in read_qrels(qrels):
        if qrel.relevance > 0:
            wanted.setdefault(qrel.qid, set()).add(hash_did(qrel.did))
    found = []
    for hashed in query_ids.tolist():
        qid = unhash_qid(hashed)
        if qid not in wanted:
            raise InputError(f"{qrels} has no line for the query {qid}", "the embeddings belong to other queries")
        found.append(wanted[qid])
    return found


def run_lines(task: DatasetTask, hits: TopK, ids: NDArray[np.int64], query_ids: NDArray[np.int64], run: str) -> Iterator[str]:
    """``qid Q0 did rank score run_id task_id``, ranks from 1."""
    for qid, row, scores in zip(query_ids.tolist(), ids.tolist(), hits.scores, strict=True):
        for rank, (did, value) in enumerate(zip(row, scores, strict=True), 1):
            yield f"{unhash_qid(qid)} Q0 {unhash_did(did)} {rank} {value} {run} {task.task_id}"


def table(scores: Sequence[Score]) -> str:
    """UniIR's tab-separated table, with its order and its line ends. A union value is joined onto the local row."""
    union: Mapping[tuple[DatasetTask, Split, int], float] = {
        (score.task, score.split, score.k): score.value for score in scores if score.pool == "union"
    }
    local = sorted(
        (score for score in scores if score.pool == "single"),
        key=lambda score: (score.task.task_id, DATASET_TASKS.index(score.task), score.split != "val", score.k),
    )
    rows = ["\t".join(HEADER)]
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
        rows.append("\t".join(map(str, cells)))
    return "\r\n".join(rows) + "\r\n"


def score_directory(
    files: EmbeddingFiles,
    layout: Layout,
    *,
    split: Split = "test",
    pools: Sequence[Pool] = ("single", "union"),
    device: str = "cpu",
) -> Iterator[tuple[list[Score], Path]]:
    """Scores every task that has query embeddings and writes its run files: (scores, run file).

    Local pools one after another, then the union of all in one pass for all tasks.
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
        there = [files.candidates(task, split) for task in DATASET_TASKS]
        searches.append(("union", tasks, [load_embeddings(path) for path in there if path.is_file()]))
    for pool, asking, candidates in searches:
        asked = {task: queries[task] for task in asking}
        for task, hits in score_tasks(asked, split, pool, candidates=candidates, qrels=qrels, device=device):
            run = f"mbeir_{task.name}_{pool}_pool_{split}_k{max(metric_ks(task))}"
            path = files.runs / f"{run}_run.txt"
            path.write_text("\n".join(run_lines(task, hits.found, hits.ids, queries[task].ids, run)) + "\n", encoding="utf-8")
            yield hits.scores, path
