"""Disks that fill and fail, clocks that jump, processes that are killed at named points while a build writes.

Each test ends with the files of an undisturbed build or with the complete old dataset; only requests in flight are asked twice.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import pipeline.build
import pipeline.dataset.shards
import pipeline.dataset.staging
import pipeline.files.atomic_directory
import pipeline.ledger.ledger
import pipeline.ledger.segment
from bench.oracle import Oracle
from pipeline.files.atomic_directory import recover_directory, replace_directory, staging_path
from pipeline.ledger.journal import Journal, LedgerError, read_journal
from pipeline.ledger.ledger import Ledger, recover
from pipeline.ledger.segment import SegmentStore
from schemas.errors import CotError
from schemas.os_errors import explained
from tests.faults.conftest import Build, Inject
from tests.pipeline.files.test_atomic_directory import version
from tests.pipeline.ledger.test_ledger import entry, key
from tests.support.builds import ROOT, digests
from tests.support.cli import mbeir_cot

Undisturbed = tuple[dict[str, str], set[str]]
IN_FLIGHT = 8


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


DRIVER: dict[str, tuple[Any, str, int, str]] = {
    # point -> where, what, errno, the message
    "staging": (pipeline.dataset.staging.Staging, "put", errno.ENOSPC, "the disk is full"),
    "shards": (pipeline.dataset.shards.ShardWriter, "_flush", errno.EDQUOT, "your quota"),
    "staging read": (pipeline.dataset.staging.Staging, "get", errno.EIO, "the disk or its connection fails"),
    "manifest": (pipeline.build, "write_card", errno.ENOSPC, "the disk is full"),
    "sync": (pipeline.files.atomic_directory, "sync", errno.EIO, "the disk or its connection fails"),
    "exchange": (pipeline.files.atomic_directory, "_exchange", errno.EROFS, "read-only"),
}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_drivers_disk(undisturbed: Undisturbed, small_world: Path, tmp_path: Path, build: Build) -> None:
    with Oracle(tmp_path / "oracle.log") as oracle:
        config = oracle.config(tmp_path, small_world, input__limit=60)
        dataset = tmp_path / "out" / "dataset"
        for point, (place, name, number, said) in list(DRIVER.items())[:-1]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(place, name, failing(number))
                with pytest.raises(CotError, match=said) as error:
                    build(config)
            assert "run" in error.value.remedy, point
            assert not dataset.exists(), point
        build(config)
        assert digests(dataset) == undisturbed[0]
        # over an old dataset, with which the new one is exchanged: the old one stays complete
        for point, (place, name, number, said) in list(DRIVER.items())[-2:]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(place, name, failing(number))
                with pytest.raises(CotError, match=said):
                    build(config, "verify.threshold=0.71")
            assert digests(dataset) == undisturbed[0], point
        asked = oracle.answered()
    assert set(asked) == undisturbed[1]
    assert sum(asked.values()) - len(asked) <= IN_FLIGHT  # from the first attempt, whose chunks were lost on their way


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("point", ["journal", "sealing", "segment", "sealed"])
def test_a_workers_disk_and_death(
    undisturbed: Undisturbed, small_world: Path, tmp_path: Path, build: Build, inject: Inject, point: str
) -> None:
    with Oracle(tmp_path / "oracle.log") as oracle:
        config = oracle.config(tmp_path, small_world, input__limit=60, workers=1, ledger__segment_answers=40)
        if point == "journal":
            inject(journal={"errno": errno.ENOSPC, "after": 20})
            with pytest.raises(CotError, match="the disk is full: an answer could not be written"):
                build(config)
            inject()
        elif point == "sealing":
            inject(sealing={"errno": errno.ENOSPC})
            with pytest.raises(CotError, match="the disk is full: the segment"):
                build(config)
            assert not (tmp_path / "out" / "dataset").exists()
            inject()
        else:  # killed while it seals its first segment: Ray starts another worker, which finds the journal
            inject(**{point: {"marker": str(tmp_path / "killed")}})
        build(config)
        asked = oracle.answered()
    assert point in ("journal", "sealing") or (tmp_path / "killed").exists()
    assert digests(tmp_path / "out" / "dataset") == undisturbed[0]
    assert set(asked) == undisturbed[1]
    assert sum(asked.values()) - len(asked) <= IN_FLIGHT


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_node_that_is_lost_while_the_dataset_is_assembled(
    undisturbed: Undisturbed, small_world: Path, tmp_path: Path, build: Build
) -> None:
    """A process of its own: a driver may end with its node. Then the same build, with nothing asked twice."""
    faults, marker = tmp_path / "faults.json", tmp_path / "lost"
    faults.write_text(json.dumps({"assembly": {"marker": str(marker)}}))
    environment = {
        "MBEIR_COT_FAULTS": str(faults),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "faults" / "inject"), str(ROOT)]),
    }
    with Oracle(tmp_path / "oracle.log") as oracle:
        config = oracle.config(tmp_path, small_world, input__limit=60, workers=1)
        done = mbeir_cot("build", config, "--quiet", own_process=True, **environment)
        assert marker.exists()
        if done.returncode:
            build(config)
        asked = oracle.answered()
    assert digests(tmp_path / "out" / "dataset") == undisturbed[0]
    assert set(asked) == undisturbed[1]
    assert max(asked.values()) == 1


@pytest.mark.slow
def test_a_damaged_segment_ends_the_build_and_rejects_nothing(small_world: Path, tmp_path: Path, build: Build) -> None:
    with Oracle(tmp_path / "oracle.log") as oracle:
        config = oracle.config(tmp_path, small_world, input__limit=60)
        build(config)
        before, asked = digests(tmp_path / "out" / "dataset"), oracle.answered()
        store = SegmentStore(tmp_path / "out" / "ledger")
        name = store.names()[0]
        group = pq.ParquetFile(store.path(name)).metadata.row_group(0)
        texts = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "text")
        with Path(store.path(name)).open("r+b") as file:
            file.seek(texts.data_page_offset + 40)
            file.write(b"damaged")
        for _ in range(2):
            with pytest.raises(CotError, match=f"{name} is damaged") as caught:
                build(config, "verify.threshold=0.71")
            assert "ledger verify" in caught.value.remedy
            assert digests(tmp_path / "out" / "dataset") == before
        assert oracle.answered() == asked
        Path(store.path(name)).rename(tmp_path / "damaged.parquet")  # as `ledger verify` says
        build(config, "verify.threshold=0.71")
        assert oracle.answered() != asked


def killed(work: Callable[[], None]) -> None:
    """Runs it in its own process, and checks that this is killed."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def kill_at(number: int) -> Callable[..., Any]:
    """Returns a function that kills its process at the start of its `number`-th call."""
    calls = 0

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **named)

        return call

    return wrap


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize(
    ("point", "number", "now"),
    [
        ("sync", 1, "old"),  # before anything
        ("_exchange", 1, "old"),  # all is durable, nothing is moved
        ("rmtree", 1, "new"),  # exchanged (or renamed twice), the old one not yet removed
        ("rename", 1, "old"),
        ("rename", 2, "old"),  # between two renames
        ("sync", 4, "new"),  # the very last
    ],
)
def test_a_kill_during_publication(tmp_path: Path, exchange: bool, point: str, number: int, now: str) -> None:
    if exchange and point == "rename":
        pytest.skip("one step, no renames")
    place = tmp_path / "dataset"
    version(place, "old")
    new = version(staging_path(place), "new")  # two things to sync, then itself, then the place

    def work() -> None:
        if not exchange:
            pipeline.files.atomic_directory._exchange = lambda *_: False  # type: ignore[assignment]
        owner = {"rmtree": pipeline.files.atomic_directory.shutil, "rename": Path}.get(point, pipeline.files.atomic_directory)
        setattr(owner, point, kill_at(number)(getattr(owner, point)))
        replace_directory(new, place)

    killed(work)
    recover_directory(place)
    assert (place / "data" / "file").read_text() == now
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]
    replace_directory(version(staging_path(place), "newer"), place)  # and the next one works
    assert (place / "data" / "file").read_text() == "newer"


@pytest.mark.parametrize(("owner", "point"), [("segment", "sync"), ("segment", "sync 2"), ("journal", "close")])
def test_a_kill_while_a_segment_is_sealed(tmp_path: Path, owner: str, point: str) -> None:
    def work() -> None:
        ledger = Ledger(tmp_path, segment_answers=10)
        if owner == "segment":
            pipeline.ledger.segment.sync = kill_at(int(point[5:] or 1))(pipeline.ledger.segment.sync)  # type: ignore[assignment]
        else:
            pipeline.ledger.ledger.Journal.close = kill_at(1)(pipeline.ledger.ledger.Journal.close)  # type: ignore[method-assign]
        for number in range(25):
            ledger.append(entry(number))
        ledger.close()

    killed(work)
    recover(tmp_path)
    recover(tmp_path)  # a second time
    ledger = Ledger(tmp_path)
    found = [ledger.get(key(number)) is not None for number in range(25)]
    appended = found.index(False) if False in found else 25
    assert appended >= 10
    assert not any(found[appended:])
    assert len(ledger) == appended  # no duplicates
    assert not list((tmp_path / "journals").iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_journal_that_cannot_be_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Network file systems say only then that the disk is full."""
    ledger = Ledger(tmp_path)
    ledger.append(entry(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(number))
        for flush in (ledger.sync, ledger.close):
            with pytest.raises(LedgerError, match=explained(OSError(number, "")).cause) as caught:
                flush()
            assert explained(OSError(number, "")).remedy in caught.value.remedy
    assert [len(read_journal(path).entries) for path in (tmp_path / "journals").iterdir()] == [1]


def test_a_part_of_a_line_that_stays_does_not_damage_the_next_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, write = Journal(tmp_path / "a.journal"), os.write
    journal.append(entry(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, line: write(file, line[:20]))
        patch.setattr(os, "ftruncate", failing(errno.EIO))
        for _ in range(2):
            with pytest.raises(LedgerError, match="could not be written"):
                journal.append(entry(2))
    journal.append(entry(3))
    assert [bytes.fromhex(line["fingerprint"]) for line in read_journal(journal.path).entries] == [key(1), key(3)]
    assert read_journal(journal.path).damaged == 0
    journal.close()


def test_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It jumps back between two writers: nothing depends on the order of segment names, and no segment is overwritten."""
    for number, moment in enumerate((2e9, 1e9, 2e9, 0.0, -5.0)):
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        ledger = Ledger(tmp_path)
        assert all(ledger.get(key(before)) is not None for before in range(number))
        ledger.append(entry(number))
        ledger.close()
    assert len(Ledger(tmp_path)) == 5
    assert len(Ledger(tmp_path).store.names()) == 5
