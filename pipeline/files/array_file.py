"""Arrays on disk that are filled in place."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike

_NO_ALLOCATION: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS})
"""Errors of a file system that cannot allocate."""


def allocate_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[Any]]:
    """A new .npy file, mapped for writing.

    Its room on the disk is taken first: a write to a mapped page for which there is none kills the process (SIGBUS). Raises
    OSError with the file's name if the disk is full, and leaves no file. Where the file system cannot allocate (NFS 3), the C
    library touches every block instead, which costs a write of the whole file; if that is impossible too, no room is taken.
    """
    try:
        array: np.memmap[Any, np.dtype[Any]] = np.lib.format.open_memmap(path, "w+", dtype, shape)  # type: ignore[no-untyped-call]
        _take_room(path)
    except OSError as error:
        path.unlink(missing_ok=True)  # what was taken of the last room
        raise OSError(error.errno, error.strerror, str(path)) from error
    return array


def _take_room(path: Path) -> None:
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in _NO_ALLOCATION:
                raise
