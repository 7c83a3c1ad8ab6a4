"""Image files that a build could not use, and whether any of them has changed since.

A finished build depends on them as on its inputs: once a disk is mounted or an image is repaired, it is out of date.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.mbeir.image_store import ImageProblem, ImageStore
from schemas.record import ImageReason

READABLE = "readable"


def state_of(images: ImageStore, path: str, reason: str) -> str:
    """Equal while the file is unchanged: the reason why it is missing, or its size and time of change.

    reason: why it could not be used. A file that could not be read (permissions, a failing disk) is read again to find out.
    """
    try:
        real = images.resolve(path)
        if reason == ImageReason.UNREADABLE:
            images.read_bytes(path)
            return READABLE
        stat = real.stat()
    except ImageProblem as problem:
        return str(problem.reason)
    except OSError as error:
        return f"errno {error.errno}"
    return f"{stat.st_size} bytes, {stat.st_ctime_ns}"  # ctime: a copy with a preserved mtime has a new one


def unchanged(images: ImageStore, unread: Mapping[str, tuple[str, str]]) -> bool:
    """Whether all files are in their recorded state. `unread`: path -> (reason, state)."""
    return all(state != READABLE and state_of(images, path, reason) == state for path, (reason, state) in unread.items())
