"""Files that survive a power cut."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path


def sync(path: Path | str) -> None:
    """Flushes a file or a directory to disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno != errno.EINVAL or not os.path.isdir(path):  # noqa: PTH112 (some file systems sync no directories)
            raise
    finally:
        os.close(file)


def sha256_file(path: Path) -> str:
    """Hexadecimal digits of a file's SHA-256, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_text(path: Path, text: str) -> None:
    """Replaces a file by a new one in one step."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    sync(new)
    new.replace(path)
