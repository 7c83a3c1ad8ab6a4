"""Guards a good dataset against being replaced by one with much fewer records or traces."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, NonNegativeInt, ValidationError

from schemas.errors import BuildError
from schemas.manifest import Manifest, TaskCounts
from schemas.os_errors import refused_by_system
from schemas.record import Route

_TRACES: Final = 20
"""With at least this many rejected traces, a dataset without any trace counts as a failure; so does a dataset-task that had as
many traces and has none."""


class Contents(BaseModel):
    """What a dataset holds that may be replaced: the part of its manifest that every version has."""

    records: NonNegativeInt
    tasks: tuple[TaskCounts, ...] = ()
    uncounted: NonNegativeInt = 0
    """Traces of a dataset whose tasks are not known."""

    @property
    def traces(self) -> int:
        return sum(task.reasoning for task in self.tasks) + self.uncounted


def refuse_worse(new: Manifest, written: Path, place: Path, least_share: float) -> None:
    """Raises BuildError for a dataset that keeps nothing, or much less than the one in `place`, and moves it aside.

    written: the directory of the new dataset. least_share: the share of the old records, and of the old traces, that the new
    one must keep.
    """
    lacking = lost(new, _old(place), least_share, f"the dataset in {place}")
    worse = lacking or nothing_kept(new)
    if worse is None:
        return
    aside = set_aside(place)
    shutil.rmtree(aside, ignore_errors=True)
    written.rename(aside)
    there = f"; {place} is untouched" if place.exists() else ""
    raise BuildError(
        f"{worse}\n  the new dataset was not published{there}; it is in {aside}",
        "look at its rejections (`mbeir-cot stats` and `mbeir-cot report` of it), fix the cause and run again; or, if it is "
        "intended, run again with --replace (no request is sent twice); publish.least_share sets which share is enough",
    )


def set_aside(place: Path) -> Path:
    """The path of a dataset that was not published."""
    return place.with_name(f"{place.name}-unpublished")


def nothing_kept(manifest: Manifest) -> str | None:
    """A sentence if a build kept nothing, or none of its traces, with the most frequent reasons; else None."""
    if not manifest.records:
        return f"none of {manifest.queries:,} queries was kept: {dominant(manifest)}"
    reasoning = sum(task.reasoning for task in manifest.tasks)
    rejected = sum(count for _, count in _reasons(manifest, traces=True))
    if not reasoning and rejected >= _TRACES:
        return f"none of {rejected:,} queries that were to reason has a trace: {dominant(manifest, traces=True)}"
    return None


def dominant(manifest: Manifest, *, traces: bool = False) -> str:
    """The most frequent reasons with their counts. traces: only of queries that were to reason."""
    return ", ".join(f"{name} ({count:,})" for name, count in _reasons(manifest, traces=traces)[:3]) or "there are none"


def _reasons(manifest: Manifest, *, traces: bool) -> list[tuple[str, int]]:
    counts: Counter[str] = Counter()
    for task in manifest.tasks:
        counts.update(task.rejected)
    reasons = counts.most_common()
    if not traces:
        return reasons
    return [(reason, count) for reason, count in reasons if reason.split(":")[0] in ("reason", "screen", "verify")]


def lost(new: Manifest, old: Contents, least_share: float, where: str) -> str | None:
    """A sentence on what a new dataset lacks compared with an old one; None if it keeps enough.

    Records and traces are compared alike, since with `on_reject: bypass` a rejected trace leaves its record.
    least_share: the share of the old ones that the new dataset must keep. where: how to name the old one.
    """
    if not old.records:
        return None
    why = f"; most were rejected for {dominant(new)}" if new.rejections else ""
    if new.records < least_share * old.records:
        return f"the build keeps {new.records:,} records, {where} has {old.records:,}{why}"
    remaining = {(task.dataset, task.task_id): task for task in new.tasks}
    gone = {}
    for task in old.tasks:
        now = remaining.get((task.dataset, task.task_id))
        if (records := task.reasoning + task.bypass) and (now is None or not now.reasoning + now.bypass):
            gone[f"{task.dataset}_task{task.task_id}"] = records
    if gone:
        return f"the build keeps no record of {_listed(gone)}, which {where} has{why}"
    return _lost_traces(new, old, least_share, where)


def _lost_traces(new: Manifest, old: Contents, least_share: float, where: str) -> str | None:
    why = f"; most were rejected for {dominant(new, traces=True)}" if _reasons(new, traces=True) else ""
    traces = sum(task.reasoning for task in new.tasks)
    if traces < least_share * old.traces:
        return f"the build keeps {traces:,} traces, {where} has {old.traces:,}{why}"
    reasoning = {(task.dataset, task.task_id) for task in new.tasks if task.reasoning}
    gone = {
        f"{task.dataset}_task{task.task_id}": task.reasoning
        for task in old.tasks
        if task.reasoning >= _TRACES and (task.dataset, task.task_id) not in reasoning
    }
    return f"the build keeps no trace of {_listed(gone)}, which {where} has{why}" if gone else None


def _listed(gone: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in gone.items())


def _old(place: Path) -> Contents:
    """What the dataset there holds. Its files count where the manifest is lost, damaged or of another version."""
    try:
        manifest = Manifest.model_validate_json((place / "manifest.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        files = sorted((place / "data").glob("*.parquet"))
        return Contents(records=sum(map(_rows, files)), uncounted=sum(map(_traces, files)))
    return Contents(records=manifest.records, tasks=manifest.tasks)


def _rows(file: Path) -> int:
    try:
        return int(pq.read_metadata(file).num_rows)
    except pa.ArrowInvalid:  # cut off: no good dataset
        return 0


def _traces(file: Path) -> int:
    try:
        routes = pq.read_table(file, columns=["route"])["route"]
    except (pa.ArrowInvalid, OSError) as error:  # cut off or damaged: no good dataset
        if refused_by_system(error) is not None:
            raise
        return 0
    return int(pc.sum(pc.equal(routes, str(Route.REASONING))).as_py() or 0)
