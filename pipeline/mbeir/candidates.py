"""Candidates by did: looked up in the dataset-task's local pool first, then in the split's global one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from pipeline.mbeir.layout import Layout
from pipeline.mbeir.pools import CandidatePool
from schemas.config import BuildConfig
from schemas.mbeir import Candidate, DatasetTask, Split, hash_did

Row = Mapping[str, Any]


def fetch_held(pools: Sequence[CandidatePool], dids: Sequence[str]) -> dict[str, Candidate]:
    """did -> candidate, each from the first pool that contains it. Dids that are in no pool are left out."""
    candidates: dict[str, Candidate] = {}
    for pool in pools:
        missing = [did for did in dict.fromkeys(dids) if did not in candidates]
        positions = pool.find(np.array([hash_did(did) for did in missing], np.int64))
        held = [did for did, position in zip(missing, positions.tolist(), strict=True) if position >= 0]
        candidates |= dict(zip(held, pool.fetch(held), strict=True))
    return candidates


class CandidateLookup:
    """The pools of an M-BEIR directory, opened on first use. Use as a context manager or call `close`."""

    def __init__(self, layout: Layout, cache: Path | None) -> None:
        self._layout, self._cache = layout, cache
        self._pools: dict[Path, CandidatePool] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()

    def pools(self, task: DatasetTask, split: Split) -> list[CandidatePool]:
        """The pools that may contain positives of a dataset-task, in the order of `Layout.target_pools`; empty if none
        exists."""
        return [self._pool(path) for path in self._layout.target_pools(task, split)]

    def held(self, task: DatasetTask, split: Split, dids: Sequence[str]) -> Iterator[Candidate]:
        """The candidates that are in a pool, in the order given, read one at a time."""
        pools = self.pools(task, split)
        for did in dids:
            yield from fetch_held(pools, [did]).values()

    def first_held(self, task: DatasetTask, split: Split, dids: Sequence[Sequence[str]]) -> list[Candidate | None]:
        """For each list of dids, the first that is in the first pool with any of them; None if no pool has one."""
        targets: list[Candidate | None] = [None] * len(dids)
        for path in self._layout.target_pools(task, split):
            asked = [(i, did) for i, target in enumerate(targets) if target is None for did in dids[i]]
            if not asked:
                break
            pool = self._pool(path)
            positions = pool.find(np.array([hash_did(did) for _, did in asked], np.int64))
            first: dict[int, int] = {}
            for (i, _), position in zip(asked, positions.tolist(), strict=True):
                if position >= 0:
                    first.setdefault(i, position)
            if first:
                table = pool.fetch_table(np.array(list(first.values()), np.int64))
                for i, row in zip(first, table.to_pylist(), strict=True):
                    targets[i] = Candidate.model_validate(row)
        return targets

    def _pool(self, path: Path) -> CandidatePool:
        if path not in self._pools:
            self._pools[path] = CandidatePool.open(path, self._cache)
        return self._pools[path]


def first_positives(settings: BuildConfig, rows: Sequence[Row]) -> dict[str, Candidate]:
    """Row id -> the target of a dataset's row: the first of its positives that is in a pool."""
    by_task: dict[tuple[Split, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        by_task[row["split"], row["dataset"], row["task_id"]].append(row)
    targets: dict[str, Candidate] = {}
    with CandidateLookup(Layout.open(settings.mbeir), settings.input.candidate_cache) as lookup:
        for (split, dataset, task_id), part in by_task.items():
            first = lookup.first_held(DatasetTask(dataset, task_id), split, [row["positives"] for row in part])
            targets |= {row["id"]: target for row, target in zip(part, first, strict=True) if target is not None}
    return targets
