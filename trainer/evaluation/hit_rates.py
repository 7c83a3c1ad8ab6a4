"""Hit rates: each dataset-task's k, and the share of queries with a relevant candidate among the first k.

Source: UniIR's ``mbeir_retriever.py``. "Recall@k" is a hit rate there: 1 if any relevant candidate is among the first k,
averaged over the query embeddings of a file and rounded to four digits. Queries that an evaluation listed as unreadable beside
their file's embeddings count as misses; UniIR's code does not know of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.mbeir.qrels import read_qrels
from schemas.errors import InputError
from schemas.mbeir import DatasetTask, EvaluationSplit, hash_did, unhash_qid
from trainer.data.exclusions import load_exclusions
from trainer.embedding.files import Embeddings, exclusions_path
from trainer.retrieval.topk import MISSING, TopK, top_k_each

Pool = Literal["single", "union"]

USUAL_KS: Final = (1, 5, 10)
FASHION_KS: Final = (10, 20, 50)
_FASHION: Final = frozenset({DatasetTask("fashion200k", 0), DatasetTask("fashion200k", 3), DatasetTask("fashioniq", 7)})


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
