"""Counts of an M-BEIR directory, whole or partial, per split and dataset-task."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.mbeir.image_store import ImageProblem, ImageStore
from pipeline.mbeir.layout import Layout, QueryFile
from pipeline.mbeir.pools import CandidatePool
from pipeline.mbeir.queries import read_queries
from pipeline.mbeir.stores import plain_store
from pipeline.progress_meter import Meter
from schemas.errors import InputError
from schemas.mbeir import DATASET_TASKS, QUERY_SPLITS, DatasetTask, QuerySplit, hash_did, hash_qid

_LEGEND: Final = (
    "pool: candidates of the local pool; outside: positives that it lacks (cross-dataset ones); "
    "images: distinct pictures; missing: pictures whose files do not exist"
)


class TaskStats(BaseModel):
    """One dataset-task in one split. None: not counted."""

    split: QuerySplit
    dataset_task: str
    rows: int
    queries: int
    positives: int
    local_pool: int | None
    outside_local_pool: int | None
    images: int
    missing_images: int | None


class PoolStats(BaseModel):
    pool: str
    scope: str
    candidates: int
    by_modality: dict[str, int]
    missing_images: int | None


class MbeirStats(BaseModel):
    root: str
    tasks: list[TaskStats]
    pools: list[PoolStats]


def collect_stats(
    root: Path,
    *,
    images: bool = True,
    image_roots: Sequence[Path] = (),
    cache_dir: Path | None = None,
) -> MbeirStats:
    """Reads every query file and pool once. images: also check whether each image file exists.

    Raises InputError for malformed files; `check` lists their problems.
    """
    layout = Layout.open(root)
    store = plain_store(root, image_roots) if images else None
    query_files, pool_files = list(layout.query_files()), list(layout.pool_files())
    total = sum(path.stat().st_size for path in [f.path for f in query_files] + [f.path for f in pool_files])
    tasks: list[TaskStats] = []
    pools: list[PoolStats] = []
    with ExitStack() as stack:
        meter = stack.enter_context(Meter("counting", total))
        opened: dict[Path, CandidatePool] = {}
        for pool_file in pool_files:
            meter.note = pool_file.name
            pool = stack.enter_context(CandidatePool.open(pool_file.path, cache_dir))
            opened[pool_file.path] = pool
            modalities, missing = _count_candidates(pool, store)
            pools.append(
                PoolStats(
                    pool=pool_file.name,
                    scope=pool_file.scope,
                    candidates=len(pool),
                    by_modality=dict(sorted(modalities.items())),
                    missing_images=missing,
                )
            )
            meter.advance(pool_file.path.stat().st_size)
        for query_file in query_files:
            meter.note = query_file.path.name
            tasks += _count_queries(layout, query_file, opened, store)
            meter.advance(query_file.path.stat().st_size)
    names = [task.name for task in DATASET_TASKS]
    tasks.sort(key=lambda row: (QUERY_SPLITS.index(row.split), names.index(row.dataset_task)))
    return MbeirStats(root=str(root), tasks=tasks, pools=pools)


def _count_candidates(pool: CandidatePool, store: ImageStore | None) -> tuple[Counter[str], int | None]:
    modalities: Counter[str] = Counter()
    missing = 0
    for batch in pool.batches():
        modalities.update(batch["modality"].to_pylist())
        if store is not None:
            missing += sum(not _exists(store, path) for path in batch["img_path"].to_pylist() if path)
    return modalities, missing if store is not None else None


def _count_queries(
    layout: Layout, query_file: QueryFile, opened: dict[Path, CandidatePool], store: ImageStore | None
) -> Iterator[TaskStats]:
    rows: Counter[DatasetTask] = Counter()
    qids: dict[DatasetTask, array[int]] = {}
    dids: dict[DatasetTask, array[int]] = {}
    images: dict[DatasetTask, set[str]] = {}
    seen: dict[DatasetTask, set[int]] = {}
    for _, query in read_queries(query_file.path):
        task = query.dataset_task
        rows[task] += 1
        hashed = hash_qid(query.qid)
        if hashed in seen.setdefault(task, set()):
            continue  # the up-sampled union repeats rows
        seen[task].add(hashed)
        qids.setdefault(task, array("q")).append(hashed)
        dids.setdefault(task, array("q")).extend(hash_did(did) for did in query.pos_cand_list)
        if query.query_img_path:
            images.setdefault(task, set()).add(query.query_img_path)
    for task in rows:
        if task not in DATASET_TASKS:
            raise InputError(
                f"{query_file.path} has queries of {task.name}, which is not a dataset-task of M-BEIR",
                "run `mbeir-cot mbeir check DIR`",
            )
        local = layout.local_pool(task, query_file.split)
        pool = opened.get(local) if local else None
        paths = images.get(task, set())
        yield TaskStats(
            split=query_file.split,
            dataset_task=task.name,
            rows=rows[task],
            queries=len(qids[task]),
            positives=len(dids[task]),
            local_pool=len(pool) if pool is not None else None,
            outside_local_pool=_absent(pool, dids[task]) if pool is not None else None,
            images=len(paths),
            missing_images=sum(not _exists(store, path) for path in paths) if store is not None else None,
        )


def _absent(pool: CandidatePool, dids: array[int]) -> int:
    hashes: NDArray[np.int64] = np.frombuffer(dids, np.int64)
    return int((pool.find(hashes) < 0).sum())


def _exists(store: ImageStore, path: str) -> bool:
    try:
        store.resolve(path)
    except ImageProblem:
        return False
    return True


def render(stats: MbeirStats) -> RenderableType:
    """Tables for the terminal."""
    tables: list[RenderableType] = []
    splits: dict[str, list[TaskStats]] = {}
    for row in stats.tasks:
        splits.setdefault(row.split, []).append(row)
    for split, rows in splits.items():
        table = Table(
            title=f"queries, {split}",
            title_justify="left",
            title_style="bold",
            show_footer=True,
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        repeated = any(row.rows != row.queries for row in rows)
        columns = ["rows"] if repeated else []
        columns += ["queries", "positives", "pool", "outside", "images", "missing"]
        table.add_column("dataset-task", "all", no_wrap=True)
        values: list[list[int | None]] = [
            [
                *([row.rows] if repeated else []),
                row.queries,
                row.positives,
                row.local_pool,
                row.outside_local_pool,
                row.images,
                row.missing_images,
            ]
            for row in rows
        ]
        for column, numbers in zip(columns, zip(*values, strict=True), strict=True):
            footer = "" if column == "pool" else _number(_sum(numbers))
            table.add_column(column, footer, justify="right", no_wrap=True)
        for row, cells in zip(rows, values, strict=True):
            table.add_row(Text(row.dataset_task), *map(_number, cells))
        tables.append(table)
    if stats.pools:
        table = _table("candidate pools")
        table.add_column("pool", no_wrap=True)
        for column in ("candidates", "text", "image", "image,text", "missing"):
            table.add_column(column, justify="right", no_wrap=True)
        for pool in stats.pools:
            counts = [pool.by_modality.get(name, 0) for name in ("text", "image", "image,text")]
            table.add_row(Text(pool.pool), *map(_number, [pool.candidates, *counts, pool.missing_images]))
        tables.append(table)
    return Group(*tables, Text(_LEGEND, style="dim"))


def _table(title: str, *, footer: bool = False) -> Table:
    style: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "box": SIMPLE_HEAD, "padding": (0, 1, 0, 0)}
    return Table(title=title, show_footer=footer, **style)


def _sum(numbers: tuple[int | None, ...]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
