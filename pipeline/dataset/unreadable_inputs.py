"""Image files that a build could not use, and whether one of them is another file by now.

A finished build depends on them as on its inputs: when a disk is mounted or an image is repaired, it is no longer up to date.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.mbeir.images import ImageProblem, ImageStore
from schemas.record import ImageReason

READABLE = "readable"


def state_of(images: ImageStore, path: str, reason: str) -> str:
    """Equal as long as looking at the file again would find the same: why it is not there, or its size and time of change.

    reason: why it could not be used. A file that could not be read (permissions, a failing disk) is read to know.
    """
    try:
        real = images.resolve(path)
        if reason == ImageReason.UNREADABLE:
            images.read_bytes(path)
            return READABLE
        found = real.stat()
    except ImageProblem as problem:
        return str(problem.reason)
    except OSError as error:
        return f"errno {error.errno}"
    return f"{found.st_size} bytes, {found.st_ctime_ns}"  # the time of change: a copy that keeps its date has a new one


def unchanged(images: ImageStore, unread: Mapping[str, tuple[str, str]]) -> bool:
    """Whether all files are in the state in which they were found. `unread`: path -> (reason, state)."""
    return all(state != READABLE and state_of(images, path, reason) == state for path, (reason, state) in unread.items())
