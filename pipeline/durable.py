"""Files that are to outlive a power cut, and disks that fill."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def sync(path: Path | str) -> None:
    """Makes a file or a directory durable."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def is_full(error: OSError) -> bool:
    """Whether there is no room left (Arrow tells it in words only)."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
