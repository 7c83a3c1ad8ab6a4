"""Disks that fill and fail, clocks that jump, processes that are killed at named points of a build's writing.

Each ends with what an undisturbed build gives, or with the old dataset whole, and nothing is asked twice but what was in flight.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline.build
import pipeline.dataset.shards
import pipeline.dataset.staging
import pipeline.files.atomic_directory
import pipeline.ledger.ledger
import pipeline.ledger.segment
from bench.oracle import Oracle
from pipeline.files.atomic_directory import recover_directory, replace_directory, staging_path
from pipeline.ledger.ledger import Ledger, recover
from schemas.errors import CotError
from tests.faults.conftest import Build, Inject
from tests.pipeline.files.test_atomic_directory import version
from tests.pipeline.ledger.test_ledger import entry, key
from tests.support.builds import digests

Undisturbed = tuple[dict[str, str], set[str]]
IN_FLIGHT = 8


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


DRIVER: dict[str, tuple[Any, str, int, str]] = {
    # point -> where, what, errno, what is said
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
        # over an old dataset, with which the new one changes places: it stays whole
        for point, (place, name, number, _) in list(DRIVER.items())[-2:]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(place, name, failing(number))
                with pytest.raises(CotError):
                    build(config, "verify.threshold=0.71")
            assert digests(dataset) == undisturbed[0], point
        asked = oracle.answered()
    assert set(asked) == undisturbed[1]
    assert sum(asked.values()) - len(asked) <= IN_FLIGHT  # of the first try, whose chunks were lost on their way


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("point", ["journal", "segment", "sealed"])
def test_an_annotators_disk_and_death(
    undisturbed: Undisturbed, small_world: Path, tmp_path: Path, build: Build, inject: Inject, point: str
) -> None:
    with Oracle(tmp_path / "oracle.log") as oracle:
        config = oracle.config(tmp_path, small_world, input__limit=60, workers=1, ledger__segment_answers=40)
        if point == "journal":
            inject(journal={"errno": errno.ENOSPC, "after": 20})
            with pytest.raises(CotError, match="the disk is full: an answer could not be written"):
                build(config)
            inject()
        else:  # killed inside the sealing of its first segment: Ray begins another, which finds the journal
            inject(**{point: {"marker": str(tmp_path / "killed")}})
        build(config)
        asked = oracle.answered()
    assert point == "journal" or (tmp_path / "killed").exists()
    assert digests(tmp_path / "out" / "dataset") == undisturbed[0]
    assert set(asked) == undisturbed[1]
    assert sum(asked.values()) - len(asked) <= IN_FLIGHT


def killed(work: Callable[[], None]) -> None:
    """Runs it in a process of its own, which must be killed on the way."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def kill_at(number: int) -> Callable[..., Any]:
    """A function that kills its process when it is called for the `number`-th time, before it does anything."""
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
        ("_exchange", 1, "old"),  # all durable, nothing moved
        ("rmtree", 1, "new"),  # exchanged (or renamed twice), the old one still there
        ("rename", 1, "old"),
        ("rename", 2, "old"),  # between two renames
        ("sync", 4, "new"),  # the very last
    ],
)
def test_killed_inside_publication(tmp_path: Path, exchange: bool, point: str, number: int, now: str) -> None:
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
def test_killed_inside_sealing(tmp_path: Path, owner: str, point: str) -> None:
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
    recover(tmp_path)  # again
    ledger = Ledger(tmp_path)
    found = [ledger.get(key(number)) is not None for number in range(25)]
    appended = found.index(False) if False in found else 25
    assert appended >= 10
    assert not any(found[appended:])
    assert len(ledger) == appended  # none twice
    assert not list((tmp_path / "journals").iterdir())


def test_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backwards, between two writers: the names of segments are no order that anything rests on, and none is written over."""
    for number, moment in enumerate((2e9, 1e9, 2e9, 0.0, -5.0)):
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        ledger = Ledger(tmp_path)
        assert all(ledger.get(key(before)) is not None for before in range(number))
        ledger.append(entry(number))
        ledger.close()
    assert len(Ledger(tmp_path)) == 5
    assert len(Ledger(tmp_path).store.names()) == 5
