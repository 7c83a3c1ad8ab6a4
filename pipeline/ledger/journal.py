"""Answers as they arrive: one append-only file per writer, one checksummed line per answer.

An append is a single write, so a killed process loses no recorded answer; `sync` protects against power cuts. A torn last line
is skipped; so is a damaged line, and its request is owed again.
"""

from __future__ import annotations

import errno
import os
import threading
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import orjson

from pipeline.files.locks import LockError, try_lock
from pipeline.ledger.entry import Entry
from schemas.errors import CotError
from schemas.os_errors import explained

_LOCKS = "set `ledger.journal` to a directory on a local disk of each node"


UNLOCKED: Final = ".new"
"""After the name of a journal that its writer has not locked yet."""


class LedgerError(CotError):
    """A ledger that cannot be written or read."""


class Journal:
    """An open journal. Its file is locked for as long as its process lives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _create_locked(path)
        except LockError as error:
            raise LedgerError(error.problem, error.remedy) from error
        except OSError as error:
            raise unwritten(error, path) from error
        self._size = 0
        self._torn = False
        """Whether the file ends with a part of a line."""
        self._closing = threading.Lock()

    def append(self, entry: Entry) -> None:
        """Raises LedgerError if the line cannot be written (the file then ends with the previous line)."""
        line = encode(entry)
        try:
            if self._torn:
                self._cut()
            written = os.write(self._file, line)
            if written != len(line):  # a disk that fills up writes only a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._torn = True
            with suppress(OSError):  # the first error says why; the next append tries again
                self._cut()
            raise unwritten(error, self.path) from error
        self._size += len(line)
        self.entries.append(entry)

    def _cut(self) -> None:
        os.ftruncate(self._file, self._size)
        self._torn = False

    def sync(self) -> None:
        """May be called from any thread. Does nothing once the journal is closed, since it was sealed then. Raises
        LedgerError."""
        with self._closing:
            if self._file >= 0:
                try:
                    os.fsync(self._file)  # network file systems report a full disk here
                except OSError as error:
                    raise unwritten(error, self.path) from error

    def close(self) -> None:
        """Releases the lock. The file stays until it is sealed."""
        with self._closing:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1


def check_journals(directory: Path) -> None:
    """Raises LedgerError if no journal can be written and locked. Called before any request is sent."""
    journal = Journal(directory / f".probe-{os.getpid()}")
    try:
        journal.append({"fingerprint": ""})
    finally:
        journal.close()
        journal.path.unlink(missing_ok=True)


class Recovered(NamedTuple):
    entries: list[Entry]
    damaged: int
    """Lines that were torn or damaged."""


def encode(entry: Entry) -> bytes:
    body = orjson.dumps(entry)
    return b"%08x %b\n" % (zlib.crc32(body), body)


def read_journal(path: Path) -> Recovered:
    """All complete lines of a journal without a living writer."""
    entries, damaged = [], 0
    for line in path.read_bytes().split(b"\n"):
        if not line:
            continue
        checksum, _, body = line.partition(b" ")
        try:
            if int(checksum, 16) != zlib.crc32(body):
                raise ValueError("checksum")
            entries.append(orjson.loads(body))
        except ValueError:
            damaged += 1
    return Recovered(entries, damaged)


def _create_locked(path: Path) -> int:
    """Creates a journal under a temporary name and renames it once it is locked, so that recovery never sees it unlocked."""
    unlocked = path.with_name(f"{path.name}{UNLOCKED}")
    while True:
        file = os.open(unlocked, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        try:
            if try_lock(file, path, _LOCKS):
                unlocked.rename(path)
                return file
        except FileNotFoundError:
            pass  # recovery removed it between opening and locking
        except BaseException:
            os.close(file)
            unlocked.unlink(missing_ok=True)
            raise
        os.close(file)


def remove_unlocked(path: Path) -> None:
    """Removes a journal whose writer died while creating it: it contains no answer. Leaves a living writer's alone."""
    lock = take_lock(path)
    if lock is not None:
        path.unlink(missing_ok=True)
        os.close(lock)


def take_lock(path: Path) -> int | None:
    """Locks an abandoned journal; None while its writer lives. Closing the descriptor releases the lock."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    held = True
    try:
        held = not try_lock(file, path, _LOCKS)
    finally:
        if held:
            os.close(file)
    return None if held else file


def unwritten(error: OSError, path: Path) -> LedgerError:
    """The error of a journal that cannot be written."""
    cause, remedy = explained(error)
    return LedgerError(
        f"{cause}: an answer could not be written to {path}",
        f"{remedy} and run the same command again: every answer written so far is kept",
    )
