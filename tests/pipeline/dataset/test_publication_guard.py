"""A good dataset is compared with what would replace it, also if its manifest cannot be read."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.dataset.publication_guard import Contents, lost, refuse_worse, set_aside
from schemas.errors import BuildError
from schemas.manifest import Manifest, TaskCounts
from tests.pipeline.dataset.test_earlier import EARLIER


@pytest.mark.parametrize("manifest", ["whole", "of another version", "damaged", "lost"])
def test_a_smaller_dataset_is_set_aside(tmp_path: Path, manifest: str) -> None:
    place = tmp_path / "dataset"
    shutil.copytree(EARLIER / "dataset", place)
    file = place / "manifest.json"
    good = Manifest.model_validate_json(file.read_bytes())
    match manifest:
        case "of another version":
            file.write_text('{"version": 99}')
        case "damaged":
            file.write_bytes(file.read_bytes()[:100])
        case "lost":
            file.unlink()
    for records, refused in ((3, True), (good.records, False)):
        written = tmp_path / f"new-{records}"
        written.mkdir()
        new = good.model_copy(update={"records": records})
        if refused:
            with pytest.raises(BuildError, match="keeps 3 records, the dataset in .* has 24.*"):
                refuse_worse(new, written, place, 0.9)
            assert set_aside(place).is_dir()
        else:
            refuse_worse(new, written, place, 0.9)
            assert written.is_dir()


def counts(task_id: int, reasoning: int, bypass: int, **rejected: int) -> TaskCounts:
    reasons = {f"verify: {reason}": count for reason, count in rejected.items()}
    queries = reasoning + bypass
    return TaskCounts(dataset="cirr", task_id=task_id, queries=queries, reasoning=reasoning, bypass=bypass, rejected=reasons)


def manifest_of(tasks: Sequence[TaskCounts]) -> Manifest:
    good = Manifest.model_validate_json((EARLIER / "dataset" / "manifest.json").read_bytes())
    records = sum(task.reasoning + task.bypass for task in tasks)
    return good.model_copy(update={"records": records, "tasks": tuple(tasks)})


OLD = (counts(7, 200, 200), counts(3, 100, 100))


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        # on_reject: bypass keeps every record, and loses the traces
        (
            (counts(7, 2, 398, low_confidence=198), counts(3, 1, 199, low_confidence=99)),
            r"keeps 3 traces, .* has 300; most were rejected for verify: low_confidence \(297\)",
        ),
        # another route, of which nothing was rejected
        ((counts(7, 150, 250), counts(3, 100, 100)), "keeps 250 traces, .* has 300$"),
        # few of all, all of one
        ((counts(7, 290, 110), counts(3, 0, 200)), r"keeps no trace of cirr_task3 \(100\), which"),
        ((counts(7, 180, 220), counts(3, 91, 109)), None),
    ],
)
def test_traces_are_compared_as_records_are(tasks: Sequence[TaskCounts], said: str | None) -> None:
    old = Contents(records=600, tasks=OLD)
    assert old.traces == 300
    worse = lost(manifest_of(tasks), old, 0.9, "the dataset there")
    assert (worse is None) if said is None else (worse is not None and re.search(said, worse))


@pytest.mark.parametrize("manifest", ["whole", "lost"])
def test_a_dataset_of_fewer_traces_is_set_aside(tmp_path: Path, manifest: str) -> None:
    place, written = tmp_path / "dataset", tmp_path / "new"
    shutil.copytree(EARLIER / "dataset", place)
    good = Manifest.model_validate_json((place / "manifest.json").read_bytes())
    traces = sum(task.reasoning for task in good.tasks)
    if manifest == "lost":
        (place / "manifest.json").unlink()
    written.mkdir()
    refuse_worse(good, written, place, 0.9)
    (first, *others) = (task.model_copy(update={"reasoning": 0, "bypass": task.reasoning + task.bypass}) for task in good.tasks)
    one = first.model_copy(update={"reasoning": 1, "bypass": first.bypass - 1})
    with pytest.raises(BuildError, match=rf"keeps 1 traces?, the dataset in .* has {traces}") as caught:
        refuse_worse(good.model_copy(update={"tasks": (one, *others)}), written, place, 0.9)
    assert "--replace" in caught.value.remedy
    assert set_aside(place).is_dir()
