"""Counts, verifies and compacts a ledger."""

from __future__ import annotations

import os
import time
import uuid
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.files.locks import no_build_in
from pipeline.ledger.entry import SCHEMA, TRANSIENT
from pipeline.ledger.journal import LedgerError, read_journal, take_lock
from pipeline.ledger.ledger import journals_directory
from pipeline.ledger.segment import SegmentStore, look_up_keys
from schemas.os_errors import refused_by_system

_COMPACT_ROWS: Final = 200_000


@dataclass
class KindStats:
    answers: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = 0.0


@dataclass
class LedgerStats:
    segments: int = 0
    journals: int = 0
    answers: int = 0
    distinct: int = 0
    bytes: int = 0
    kinds: dict[str, KindStats] = field(default_factory=dict)
    models: dict[str, int] = field(default_factory=dict)


def ledger_stats(location: str | Path, journals: Path | None = None) -> LedgerStats:
    """Sums over the segments. Answers in journals are not counted until a build seals them."""
    store = SegmentStore(location)
    stats = LedgerStats()
    keys: list[NDArray[Any]] = []
    kinds: dict[str, KindStats] = defaultdict(KindStats)
    for name in store.names():
        table = store.read(
            name, columns=["fingerprint", "kind", "outcome", "prompt_tokens", "completion_tokens", "latency_s", "model"]
        )
        stats.segments += 1
        stats.answers += len(table)
        stats.bytes += store.filesystem.get_file_info(store.path(name)).size
        keys.append(look_up_keys(table))
        grouped = table.group_by(["kind", "outcome", "model"]).aggregate(
            [([], "count_all"), ("prompt_tokens", "sum"), ("completion_tokens", "sum"), ("latency_s", "sum")]
        )
        for row in grouped.to_pylist():
            kind, count = kinds[row["kind"]], row["count_all"]
            kind.answers += count
            kind.prompt_tokens += row["prompt_tokens_sum"]
            kind.completion_tokens += row["completion_tokens_sum"]
            kind.latency_s += row["latency_s_sum"]
            if row["outcome"] != "ok":
                kind.failures[row["outcome"]] = kind.failures.get(row["outcome"], 0) + count
            if row["model"]:
                stats.models[row["model"]] = stats.models.get(row["model"], 0) + count
    stats.distinct = len(np.unique(np.concatenate(keys))) if keys else 0
    stats.kinds = dict(sorted(kinds.items()))
    stats.journals = sum(1 for _ in journals_directory(store, journals).glob("*.journal"))
    return stats


def verify_ledger(location: str | Path, journals: Path | None = None) -> list[str]:
    """Descriptions of everything that is damaged. Reads every byte."""
    store = SegmentStore(location)
    problems = []
    for name in store.names():
        try:
            table = store.read(name)
            table.validate(full=True)
            if table.schema.names != SCHEMA.names:
                problems.append(f"{name}: its columns are {', '.join(table.schema.names)}")
            elif table["fingerprint"].null_count:
                problems.append(f"{name}: {table['fingerprint'].null_count} answers without fingerprint")
        except (LedgerError, pa.ArrowInvalid) as error:
            if (refused := refused_by_system(error)) is not None:
                problems.append(f"{name}: cannot be read: {refused.cause}; {refused.remedy}")
                continue
            if isinstance(error, LedgerError) and isinstance(error.__cause__, pa.ArrowNotImplementedError):
                problems.append(f"{name}: {error.problem}; {error.remedy}")
                continue
            problems.append(
                f"{name}: cannot be read ({error.__cause__ or error}); move it away, and its requests are sent again"
            )
    for path in sorted(journals_directory(store, journals).glob("*.journal")):
        lock = take_lock(path)
        if lock is None:
            continue  # a build is writing it
        damaged = read_journal(path).damaged
        if damaged:
            problems.append(f"{path.name}: {damaged} torn or damaged lines; these answers are owed again")
        os.close(lock)
    return problems


def compact(location: str | Path) -> tuple[int, int]:
    """Merges many small segments into a few; returns their numbers (before, after).

    Of several answers to a fingerprint it keeps the one that `Ledger.get` would choose.

    New segments are written before the old ones are deleted, so an interruption loses no answer. Raises LockError if the ledger
    lies in the directory of a build that runs, LedgerError if a build elsewhere on this machine writes a journal for it.
    """
    store = SegmentStore(location)
    with no_build_in(Path(store.root).parent) if store.is_local else nullcontext():
        _refuse_journals_in_use(store)
        return _compact(store)


def _refuse_journals_in_use(store: SegmentStore) -> None:
    for path in sorted(journals_directory(store, None).glob("*.journal")) if store.is_local else ():
        lock = take_lock(path)
        if lock is None:
            raise LedgerError(f"a build is writing {path}", "run `ledger compact` again when it has ended")
        os.close(lock)


def _compact(store: SegmentStore) -> tuple[int, int]:
    names = store.names()
    if len(names) < 2:
        return len(names), len(names)
    table = pa.concat_tables([store.read(name) for name in names])
    table = table.take(pa.array(_chosen(table)))
    stamp = f"{0:011d}-compacted-{int(time.time())}-{uuid.uuid4().hex[:8]}"  # unique: the old segments are deleted by name
    count = 0
    for start in range(0, len(table), _COMPACT_ROWS):
        store.write_table(f"segment-{stamp}-{count:05d}.parquet", table.slice(start, _COMPACT_ROWS))
        count += 1
    for name in names:
        store.delete(name)
    return len(names), count


def _chosen(table: pa.Table) -> NDArray[Any]:
    """Rows to keep: of each fingerprint the first usable one, else the first permanent failure, in order."""
    outcomes = np.asarray(table["outcome"].to_pylist())
    rank = np.where(outcomes == "ok", 0, np.where(np.isin(outcomes, [str(o) for o in TRANSIENT]), 2, 1))
    prints = table["fingerprint"].to_pylist()
    best: dict[bytes, int] = {}
    for row, key in enumerate(prints):
        if key not in best or rank[row] < rank[best[key]]:
            best[key] = row
    return np.sort(np.fromiter(best.values(), np.int64, len(best)))
