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


def replace_text(path: Path, text: str) -> None:
    """Writes a whole file in the place of an older one."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    sync(new)
    new.replace(path)
