"""Checks that the queries' positives are in candidate pools, and says what to fetch if they are not."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.mbeir.findings import Findings, Severity
from pipeline.mbeir.layout import Layout, QueryFile
from schemas.mbeir import (
    DATASET_IDS,
    DATASET_NAMES,
    DATASET_TASKS,
    DID_HASH_BASE,
    DatasetTask,
    Query,
    QuerySplit,
    hash_did,
    unhash_did,
)

DOWNLOAD: Final = "download the file again (`mbeir-cot mbeir fetch DIR`)"

Pools = Mapping[Path, NDArray[np.int64]]
"""Pool files that were read -> their hashed dids, sorted."""


class Positives:
    """First and further positives of one query file, hashed, with their lines: looked up after all pools are read."""

    def __init__(self) -> None:
        self.dids, self.lines, self.first = array("q"), array("i"), array("b")

    def add(self, query: Query, line: int) -> None:
        for number, did in enumerate(query.pos_cand_list):
            self.dids.append(hash_did(did))
            self.lines.append(line)
            self.first.append(number == 0)


class Asked(NamedTuple):
    """The queries of one dataset-task in a file."""

    file: QueryFile
    task: DatasetTask
    positives: Positives


def check_positives(findings: Findings, layout: Layout, pools: Pools, asked: Asked, everything: NDArray[np.int64]) -> None:
    """`everything`: the hashed dids of all pools, sorted."""
    file, task, positives = asked
    dids = np.frombuffer(positives.dids, np.int64)
    lines = np.frombuffer(positives.lines, np.int32)
    first = np.frombuffer(positives.first, np.int8).astype(bool)
    nowhere = ~np.isin(dids, everything)
    held = set(np.unique(everything // DID_HASH_BASE).tolist())
    whole = {dataset: _has_all_pools(layout, pools, dataset, file.split) for dataset in DATASET_IDS}
    for at in np.flatnonzero(nowhere):
        did, line = unhash_did(int(dids[at])), int(lines[at])
        dataset = DATASET_NAMES[int(did[0])]
        remedy = layout.fetch_remedy(dataset, file.split)
        if int(did[0]) in held and whole[dataset]:
            message = f"positive {did} is in no candidate pool"
            findings.add(Severity.ERROR, "positive_nowhere", file.path, message, DOWNLOAD, line=line)
        elif dataset == task.dataset:
            message = f"positive {did}: the pool that holds it is not here"
            findings.add(Severity.WARNING, "positive_in_absent_pool", file.path, message, remedy, line=line)
        else:
            absent = "not all pools of {} are here" if int(did[0]) in held else "no pool of {} is here"
            message = f"positive {did}: {absent.format(dataset)}"
            remedy = f"if its candidates are wanted: {remedy}"
            findings.add(Severity.NOTE, "positive_of_absent_dataset", file.path, message, remedy, line=line)
    local_path = layout.local_pool(task, file.split)
    if local_path is None or local_path not in pools:
        return
    outside = ~np.isin(dids, pools[local_path]) & ~nowhere
    for at in np.flatnonzero(outside & first):
        message = f"the first positive, {unhash_did(int(dids[at]))}, is not in the local pool {local_path.name}"
        findings.add(Severity.ERROR, "first_positive_not_local", file.path, message, DOWNLOAD, line=int(lines[at]))
    if count := int((outside & ~first).sum()):
        message = f"{count:,} further positives of {task.name} are outside its local pool (cross-dataset positives)"
        remedy = "none needed: hit rates count the first, which is local; look the others up in the global pool"
        findings.add(Severity.NOTE, "positives_outside_local_pool", file.path, message, remedy, count=count)


def _has_all_pools(layout: Layout, pools: Pools, dataset: str, split: QuerySplit) -> bool:
    """Whether every pool that could hold a candidate of this dataset for this split was read."""
    if layout.global_pool(split) in pools:
        return True
    local = [layout.local_pool(task, split) for task in DATASET_TASKS if task.dataset == dataset]
    return all(path is not None and path in pools for path in local)
