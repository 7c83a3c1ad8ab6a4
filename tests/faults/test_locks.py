"""File systems without locks and the remedies in their messages; messages for other errors of the system."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from bench.oracle import Oracle
from pipeline.build import build as run_build
from pipeline.config import load_config
from pipeline.files.locks import LockError, is_held, only_one
from pipeline.ledger.journal import Journal, LedgerError, take_lock
from schemas.config import BuildConfig
from schemas.errors import BuildError
from schemas.os_errors import explained, is_full
from tests.faults.conftest import Build, Inject
from tests.support.builds import digests


def refused_below(place: Path, number: int, patch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock

    def flock(file: int, how: int) -> None:
        if os.path.realpath(f"/proc/self/fd/{file}").startswith(str(place)):
            raise OSError(number, os.strerror(number))
        real(file, how)

    patch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_not_taken_for_another_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    out, local = tmp_path / "out", tmp_path / "local"
    refused_below(out, number, monkeypatch)
    with pytest.raises(LockError, match=r"has no locks .*\n.*set `lock` to a file on a local disk"), only_one(out, None):
        pass
    with pytest.raises(LedgerError, match=r"has no locks .*\n.*set `ledger\.journal`"):
        Journal(out / "a.journal")
    assert [path.name for path in out.iterdir()] == [".lock"]
    with only_one(out, local / "out.lock"):
        assert is_held(out)  # as `status` checks
        with pytest.raises(LockError, match="another build is running"), only_one(out, local / "out.lock"):
            pass
    assert not is_held(out)
    journal = Journal(local / "a.journal")
    assert take_lock(local / "a.journal") is None
    journal.close()


def test_other_errors_of_locks_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused_below(tmp_path, errno.EIO, monkeypatch)
    with pytest.raises(LockError, match="the disk or its connection fails"), only_one(tmp_path, None):
        pass
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(LockError, match="lead in a circle"), only_one(tmp_path / "loop", None):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(LockError, match="is a file, not a directory|is there already"), only_one(tmp_path / "file", None):
        pass


@pytest.mark.slow
def test_a_dataset_that_is_a_link_is_refused_before_anything_is_asked(small_world: Path, tmp_path: Path) -> None:
    oracle = Oracle(tmp_path / "oracle.log")  # never started
    config = load_config(oracle.config(tmp_path, small_world, input__limit=10), BuildConfig)
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "dataset").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BuildError, match="is a link to .*elsewhere"):
        run_build(config)


@pytest.mark.parametrize(
    ("error", "cause", "remedy"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "too many open files", "ulimit -n"),
        (OSError("[Errno 28] Error writing bytes to file. Detail: No space left on device"), "disk is full", "free space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "quota", "quota -s"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only", "elsewhere"),
        (OSError("Arrow says: Input/output error"), "fails", "dmesg"),
        (OSError("nobody knows"), "nobody knows", "permissions"),
    ],
)
def test_the_error_number_decides_cause_and_remedy(error: OSError, cause: str, remedy: str) -> None:
    assert cause in explained(error).cause
    assert remedy in explained(error).remedy
    assert is_full(error) == (cause in ("disk is full", "quota"))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EROFS])
def test_an_answer_that_cannot_be_written_names_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    journal = Journal(tmp_path / "a.journal")

    def write(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(LedgerError, match=explained(OSError(number, "")).cause):
        journal.append({"fingerprint": "00" * 16})
    journal.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_build_on_a_file_system_without_locks(
    undisturbed: tuple[dict[str, str], set[str]],
    small_world: Path,
    tmp_path: Path,
    build: Build,
    inject: Inject,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Follows the remedies that the messages name."""
    shared, local = tmp_path / "shared", tmp_path / "local"
    shared.mkdir()
    local.mkdir()
    inject(locks={"errno": errno.ENOLCK, "below": str(shared)})
    refused_below(shared, errno.ENOLCK, monkeypatch)
    with Oracle(tmp_path / "oracle.log") as oracle:
        config = oracle.config(local, small_world, input__limit=60, out=str(shared / "out"))
        with pytest.raises(LockError, match="set `lock`"):
            build(config)
        lock = f"lock={local / 'out.lock'}"
        with pytest.raises(LedgerError, match=r"set `ledger\.journal`"):
            build(config, lock)
        build(config, lock, f"ledger.journal={local / 'journals'}")
        asked = oracle.answered()
    assert digests(shared / "out" / "dataset") == undisturbed[0]
    assert set(asked) == undisturbed[1]
    assert max(asked.values()) == 1
