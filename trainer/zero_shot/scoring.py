"""A task's scores from the vectors of its queries and candidates, in the order in which the task gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from schemas.errors import InputError
from trainer.embedding.vectors import Vectors
from trainer.retrieval.topk import MISSING
from trainer.zero_shot.scorers import Values, average_precision, gallery_hits, hits, pairwise, ranked
from trainer.zero_shot.tasks import Measure, Query, Task

_FAR_FROM_ONE: Final = 1e-2
"""A length is off by as much in bfloat16; an embedding that was never normalised, by far more."""


def score(task: Task, queries: Vectors, candidates: Vectors, *, device: str = "cpu") -> Values:
    """Each query's value of each of the task's metrics.

    Args:
        queries: (queries, dimensions), of length 1.
        candidates: (candidates, dimensions), of length 1.
    """
    if not task.labelled:
        raise InputError(f"{task.name}: its right answers are not published", "send a ranking to its authors' server")
    asked = list(task.queries())
    ids = [candidate.id for candidate in task.candidates()]
    _check(task, "queries", queries, len(asked))
    _check(task, "candidates", candidates, len(ids))
    if queries.shape[1] != candidates.shape[1]:
        raise InputError(
            f"{task.name}: queries have {queries.shape[1]} dimensions, candidates {candidates.shape[1]}",
            "embed both with the same model",
        )
    if task.measure in (Measure.HITS, Measure.AVERAGE_PRECISION):
        found = found_ids(task, asked, queries, candidates, device=device)
        right = [query.positives for query in asked]
        return hits(found, right, task.ks) if task.measure is Measure.HITS else average_precision(found, right, task.ks)
    places = _places(task, asked, ids, [query.gallery for query in asked])
    if task.measure is Measure.GALLERY_HITS:
        return gallery_hits(queries, candidates, places, task.ks)
    pairs = np.asarray(places)
    return pairwise(queries, candidates[pairs[:, 0]], candidates[pairs[:, 1]])


def found_ids(
    task: Task, asked: Sequence[Query], queries: Vectors, candidates: Vectors, *, device: str = "cpu"
) -> list[list[str]]:
    """For each query the ids of its best candidates, best first, as deep as the task's largest k."""
    ids = [candidate.id for candidate in task.candidates()]
    excluded = _places(task, asked, ids, [query.excluded for query in asked])
    positions = ranked(queries, candidates, max(task.ks), excluded=excluded, device=device)
    return [[ids[at] for at in row if at != MISSING] for row in positions.tolist()]


def _places(task: Task, asked: Sequence[Query], ids: Sequence[str], wanted: Sequence[Sequence[str]]) -> list[list[int]]:
    if not any(wanted):
        return [[] for _ in wanted]
    at = {identifier: place for place, identifier in enumerate(ids)}
    for query, names in zip(asked, wanted, strict=True):
        for name in names:
            if name not in at:
                raise InputError(
                    f"{task.name}: query {query.id} names the candidate {name}, which there is not",
                    "the files do not belong together: `mbeir-cot zero-shot check ROOT`",
                )
    return [[at[name] for name in names] for names in wanted]


def _check(task: Task, what: str, vectors: Vectors, number: int) -> None:
    if vectors.ndim != 2 or len(vectors) != number:
        raise InputError(f"{task.name}: {number:,} {what}, but vectors of shape {vectors.shape}", "embed the task again")
    if not number:
        raise InputError(f"{task.name} has no {what}", "its file is empty: take it as it is published")
    far = np.flatnonzero(~(np.abs(np.linalg.norm(vectors, axis=1) - 1) < _FAR_FROM_ONE))
    if len(far):
        raise InputError(
            f"{task.name}: vector {far[0]} of its {what} has not length 1 ({len(far):,} such)",
            "normalise the embeddings; NaN comes of the model",
        )
