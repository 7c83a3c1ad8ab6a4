"""Replaces a directory by a finished one in one step: readers see either the old or the complete new one."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path
from typing import Final

from pipeline.files.durable import sync

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


def replace_directory(new: Path, place: Path) -> None:
    """Makes `new` durable and exchanges it with `place` in one step (Linux), or in two renames elsewhere."""
    for path in sorted(new.rglob("*"), reverse=True):
        sync(path)
    sync(new)
    if not place.exists():
        new.rename(place)
    elif _exchange(new, place):
        shutil.rmtree(new)
    else:
        old = _aside(place)
        place.rename(old)
        new.rename(place)
        shutil.rmtree(old)
    sync(place.parent)


def recover_directory(place: Path) -> None:
    """Recovers from a kill between the two renames: restores the old dataset and removes scratch directories."""
    old = _aside(place)
    if old.exists():
        if place.exists():
            shutil.rmtree(old)
        else:
            old.rename(place)
    shutil.rmtree(staging_path(place), ignore_errors=True)


def staging_path(place: Path) -> Path:
    """The path where the next version is written."""
    return place.with_name(f".{place.name}.new")


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


def _exchange(first: Path, second: Path) -> bool:
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    error = ctypes.get_errno()
    if error in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):  # not supported by the kernel or file system
        return False
    raise OSError(error, os.strerror(error), str(second))
