"""File locks, which end with their process. Distinguishes a file system without locks from a lock that is held."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from schemas.errors import CotError
from schemas.os_errors import HELD, NO_LOCKS, explained, number_of

_WAIT_S: Final = 0.2


class LockError(CotError):
    """A lock that cannot be taken although no process holds it."""


def try_lock(file: int, path: Path | str, remedy: str) -> bool:
    """Locks an open file; False if another process holds the lock. Raises LockError; `remedy` is for file systems without
    locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        number = number_of(error)
        if number in HELD:
            return False
        if number in NO_LOCKS:
            raise LockError(f"the file system of {path} has no locks ({error.strerror})", remedy) from error
        raise LockError(f"cannot lock {path}: {explained(error).cause}", explained(error).remedy) from error
    return True


def wait_for_lock(file: int, path: Path | str, remedy: str) -> None:
    """As `try_lock`, but waits until no other process holds the lock."""
    while not try_lock(file, path, remedy):
        time.sleep(_WAIT_S)


@contextlib.contextmanager
def only_one(out: Path, lock: Path | None) -> Iterator[None]:
    """Allows one build in a directory at a time; a killed build's lock is free at once. `lock`: another path for the lock
    file."""
    place = out / ".lock"
    try:
        if out.is_symlink():
            out.stat()  # raises for a dangling or circular link, of which `mkdir` would only say that it exists
        out.mkdir(parents=True, exist_ok=True)
        if lock is not None:
            lock.parent.mkdir(parents=True, exist_ok=True)
            if not place.is_symlink() or place.readlink() != lock.absolute():
                place.unlink(missing_ok=True)
                place.symlink_to(lock.absolute())  # so that `status` finds it
        elif place.is_symlink():
            place.unlink()
        file = os.open(place, os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise LockError(f"cannot write {place}: {explained(error).cause}", explained(error).remedy) from error
    try:
        remedy = f"set `lock` to a file on a local disk (as /tmp/{out.name}.lock) and `ledger.journal` to a directory there"
        if not try_lock(file, place, remedy):
            holder = os.pread(file, 200, 0).decode("utf-8", "replace").strip()
            raise LockError(
                f"another build is running in {out}" + (f" ({holder})" if holder else ""),
                "wait for it (`mbeir-cot status DIR` shows how far it is), or name another directory with --out",
            )
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(file)


@contextlib.contextmanager
def no_build_in(out: Path) -> Iterator[None]:
    """Keeps builds out of a directory while something else changes it. Does nothing where no build ever ran."""
    place = out / ".lock"
    with contextlib.ExitStack() as held:
        if os.path.lexists(place):
            held.enter_context(only_one(out, place.readlink() if place.is_symlink() else None))
        yield


def is_held(out: Path) -> bool:
    """Whether a process holds the lock of the build in `out`. False where there are no locks."""
    try:
        file = os.open(out / ".lock", os.O_RDWR)
    except OSError:
        return False
    try:
        return not try_lock(file, out, "")
    except LockError:
        return False
    finally:
        os.close(file)
