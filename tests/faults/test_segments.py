"""Segments of a ledger that the system does not deliver: the error names the segment, and no answer counts as missing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.ledger.disputes import disputed_subjects
from pipeline.ledger.ledger import Ledger, LedgerError
from pipeline.ledger.maintenance import compact, ledger_stats, verify_ledger
from pipeline.ledger.segment import SegmentStore
from tests.faults.test_causes import failing
from tests.pipeline.ledger.test_ledger import entry, key

READS: dict[str, Callable[[Path], Any]] = {
    "opened": Ledger,
    "statistics": ledger_stats,
    "compaction": compact,
    "disputes": lambda place: disputed_subjects(SegmentStore(place)),
    "one answer": lambda place: Ledger(place).get(key(1)),
}


@pytest.mark.parametrize(
    ("number", "cause"),
    [(errno.EIO, "connection fails"), (errno.ESTALE, "has lost the file"), (errno.ETIMEDOUT, "does not answer")],
)
@pytest.mark.parametrize("what", READS)
def test_a_segment_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, number: int, cause: str
) -> None:
    import pipeline.ledger.segment

    store = SegmentStore(tmp_path)
    for name in ("segment-1.parquet", "segment-2.parquet"):
        store.write(name, [entry(1)])

    def fail(*_: Any, **__: Any) -> Any:
        words = os.strerror(number)
        raise OSError(number, f"Error reading bytes from file. Detail: [errno {number}] {words}")  # as Arrow does

    read = "read_row_group" if what == "one answer" else "read"
    monkeypatch.setattr(pipeline.ledger.segment.pq.ParquetFile, read, fail)
    with pytest.raises(LedgerError, match=rf"segment-1\.parquet cannot be read: .*{cause}"):
        READS[what](tmp_path)
    if read == "read":
        found = verify_ledger(tmp_path)
        assert len(found) == 2
        assert not any("move it away" in problem for problem in found)


def test_a_segment_on_a_failing_disk_is_not_to_be_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipeline.ledger.segment

    SegmentStore(tmp_path).write("segment-1.parquet", [entry(1)])
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.ledger.segment.pq, "ParquetFile", failing(errno.EIO))
        (found,) = verify_ledger(tmp_path)
    assert "the disk or its connection fails" in found
    assert "move it away" not in found
    assert not verify_ledger(tmp_path)


@pytest.mark.parametrize("error", [pa.ArrowMemoryError("malloc of size 64 failed"), pa.ArrowNotImplementedError("codec lz9")])
def test_a_segment_is_not_damaged_because_this_machine_cannot_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    import pipeline.ledger.segment

    SegmentStore(tmp_path).write("segment-1.parquet", [entry(1)])

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(pipeline.ledger.segment.pq.ParquetFile, "read", fail)
    if isinstance(error, MemoryError):
        with pytest.raises(MemoryError):
            verify_ledger(tmp_path)
    else:
        (found,) = verify_ledger(tmp_path)
        assert "make setup" in found
        assert "move it away" not in found
