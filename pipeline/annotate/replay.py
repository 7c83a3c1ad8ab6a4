"""Journeys of a finished build again, from its ledger alone: the prompts and raw answers behind its rows."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.annotate.steps import Guide, Journey
from pipeline.ledger.ledger import Ledger
from pipeline.mbeir.layout import Layout, Split
from pipeline.mbeir.pools import CandidatePool
from pipeline.mbeir.stores import build_store
from pipeline.teacher.cached_client import Asker, Stopped
from pipeline.teacher.client import TeacherClient
from pipeline.teacher.images import ImageEncoder
from pipeline.traces.token_counts import token_counter
from schemas.config import BuildConfig, TeacherConfig
from schemas.mbeir import Candidate, DatasetTask, Query

Row = Mapping[str, Any]


def replay(settings: BuildConfig, rows: Sequence[Row]) -> dict[str, Journey]:
    """Row id -> its journey, for rows of a dataset (or rejections). Asks nobody: journeys with unknown answers are left out."""
    store = build_store(settings)
    ledger = Ledger(settings.ledger.location or str(settings.out / "ledger"))

    async def nobody() -> TeacherClient:
        raise Stopped

    def asker(teacher: TeacherConfig) -> Asker:
        return Asker(teacher, ledger, ImageEncoder.of(teacher, store), nobody)

    teacher = asker(settings.teacher)
    verifier = asker(settings.verifier) if settings.verifier is not None else teacher
    guide = Guide(settings, teacher, verifier, token_counter(settings))
    targets = first_positives(settings, rows)
    found: dict[str, Journey] = {}

    async def travel() -> None:
        for row in rows:
            journey = Journey(row["id"], query_of(row), row["split"], row["instruction"], targets.get(row["id"]))
            try:
                found[row["id"]] = await guide.travel(journey)
            except Stopped:
                continue

    asyncio.run(travel())
    return found


def query_of(row: Row) -> Query:
    """The query of a dataset's row, without the sources' own metadata."""
    return Query.model_validate(
        {
            "qid": row["qid"],
            "query_txt": row["query_text"],
            "query_img_path": row["query_image"],
            "query_modality": row["query_modality"],
            "pos_cand_list": list(row["positives"]),
            "neg_cand_list": list(row["hard_negatives"]),
            "task_id": row["task_id"],
        }
    )


def first_positives(settings: BuildConfig, rows: Sequence[Row]) -> dict[str, Candidate]:
    """Row id -> the first positive that the local pool, or the global one, holds."""
    layout = Layout.open(settings.mbeir)
    by_task: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        by_task[row["split"], row["dataset"], row["task_id"]].append(row)
    found: dict[str, Candidate] = {}
    for (split, dataset, task_id), part in by_task.items():
        found |= _of_task(layout, settings, split, DatasetTask(dataset, task_id), part)  # type: ignore[arg-type]
    return found


def _of_task(layout: Layout, settings: BuildConfig, split: Split, task: DatasetTask, rows: list[Row]) -> dict[str, Candidate]:
    found: dict[str, Candidate] = {}
    for path in layout.target_pools(task, split):
        with CandidatePool.open(path, settings.input.cache) as pool:
            for row in rows:
                if row["id"] in found:
                    continue
                held = next((did for did in row["positives"] if did in pool), None)
                if held is not None:
                    found[row["id"]] = pool.fetch([held])[0]
    return found
