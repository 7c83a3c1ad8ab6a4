"""Candidates of queries, looked up in the pools on disk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.mbeir.layout import Layout, Split
from pipeline.mbeir.pools import CandidatePool
from schemas.config import BuildConfig
from schemas.mbeir import Candidate, DatasetTask

Row = Mapping[str, Any]


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
        with CandidatePool.open(path, settings.input.candidate_cache) as pool:
            for row in rows:
                if row["id"] in found:
                    continue
                held = next((did for did in row["positives"] if did in pool), None)
                if held is not None:
                    found[row["id"]] = pool.fetch([held])[0]
    return found
