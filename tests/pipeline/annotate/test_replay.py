"""A replay from the ledger gives equal annotations, and reads each image, row group and template once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.annotate.replay import replay
from pipeline.dataset.built_dataset import BuiltDataset
from pipeline.mbeir.image_store import ImageStore
from prompts import PromptSet


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[Any, ...]]:
    """Counts the reads of each image file and each row group of the ledger, and the renderings of each template."""
    counts: Counter[tuple[Any, ...]] = Counter()
    read_bytes, read_group, rendered = ImageStore.read_bytes, pq.ParquetFile.read_row_group, PromptSet._rendered

    def counting_bytes(self: ImageStore, relative: str) -> bytes:
        counts["image", relative] += 1
        return read_bytes(self, relative)

    def counting_group(self: pq.ParquetFile, group: int, *rest: Any, **options: Any) -> Any:
        counts["group", id(self), group] += 1
        return read_group(self, group, *rest, **options)

    def counting_rendered(self: PromptSet, template: str, safe: dict[str, Any]) -> str:
        counts["template", template, bool(safe.get("complaint"))] += 1
        return rendered(self, template, safe)

    monkeypatch.setattr(ImageStore, "read_bytes", counting_bytes)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counting_group)
    monkeypatch.setattr(PromptSet, "_rendered", counting_rendered)
    return counts


def test_a_replay_from_a_ledger_that_is_not_local(pictured_build: Path, tmp_path: Path) -> None:
    settings = BuiltDataset.open(pictured_build).settings()
    assert settings is not None
    ledger = settings.ledger.model_copy(update={"location": "mock://bucket/ledger", "journal": tmp_path})  # Arrow's, empty
    assert replay(settings.model_copy(update={"ledger": ledger}), []) == {}


def test_a_replay_reads_each_thing_once(pictured_build: Path, counted: Counter[tuple[Any, ...]]) -> None:
    dataset = BuiltDataset.open(pictured_build)
    settings, rows = dataset.settings(), list(dataset.rows())
    assert settings is not None
    found = replay(settings, rows)
    assert set(found) == {row["id"] for row in rows}
    for row in rows:
        accepted = found[row["id"]].accepted
        assert row["answer"] == (accepted.trace.answer if accepted is not None and accepted.trace is not None else None)
    most = {kind: max(n for what, n in counted.items() if what[0] == kind) for kind in ("image", "group")}
    assert most == {"image": 1, "group": 1}
    first = {what: n for what, n in counted.items() if what[0] == "template" and not what[2]}
    assert sum(first.values()) < 4 * len(first) < len(rows) / 4, first
