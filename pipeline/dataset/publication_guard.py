"""Guards a good dataset against being replaced by a much smaller one."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from schemas.errors import BuildError
from schemas.manifest import Manifest, TaskCounts

_TRACES = 20
"""With at least this many rejected traces, a dataset without any trace counts as a failure."""


def refuse_worse(new: Manifest, written: Path, place: Path, least_share: float) -> None:
    """Raises BuildError for a dataset that keeps nothing, or much less than the one in `place`, and moves it aside.

    written: the directory of the new dataset. least_share: the share of the old records that the new one must keep.
    """
    records, tasks = _old(place)
    lacking = lost(new, records, tasks, least_share, f"the dataset in {place}")
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
        "intended, run again with --replace (no request is sent twice), or lower publish.least_share",
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


def lost(new: Manifest, records: int, tasks: Sequence[TaskCounts], least_share: float, where: str) -> str | None:
    """A sentence on what a new dataset lacks compared with an old one, given by its records and tasks; None if it keeps enough.

    least_share: the share of the old records that the new one must keep. where: how to name the old one.
    """
    if not records:
        return None
    why = f"; most were rejected for {dominant(new)}" if new.rejections else ""
    if new.records < least_share * records:
        return f"the build keeps {new.records:,} records, {where} has {records:,}{why}"
    remaining = {(task.dataset, task.task_id) for task in new.tasks if task.reasoning + task.bypass}
    gone = [task for task in tasks if task.reasoning + task.bypass and (task.dataset, task.task_id) not in remaining]
    if gone:
        names = ", ".join(f"{task.dataset}_task{task.task_id} ({task.reasoning + task.bypass:,})" for task in gone)
        return f"the build keeps no record of {names}, which {where} has{why}"
    return None


def _old(place: Path) -> tuple[int, Sequence[TaskCounts]]:
    """(records, tasks) of the dataset there. Its files count where the manifest is lost, damaged or of another version."""
    try:
        manifest = Manifest.model_validate_json((place / "manifest.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return sum(map(_rows, sorted((place / "data").glob("*.parquet")))), ()
    return manifest.records, manifest.tasks


def _rows(file: Path) -> int:
    try:
        return int(pq.read_metadata(file).num_rows)
    except pa.ArrowInvalid:  # cut off: no good dataset
        return 0
