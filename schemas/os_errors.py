"""Cause and remedy of an `OSError`. The error number decides, never the place where it occurred."""

from __future__ import annotations

import errno
import os
import re
from typing import Final, NamedTuple


class Explained(NamedTuple):
    cause: str
    remedy: str


_KNOWN: Final[dict[int, Explained]] = {
    errno.ENOSPC: Explained("the disk is full", "free space (`df -h`; `df -i` for files)"),
    errno.EDQUOT: Explained("your quota on this file system is used up", "delete something, or ask for more (`quota -s`)"),
    errno.EROFS: Explained("the file system is mounted read-only", "name a directory elsewhere, or mount it writable"),
    errno.EACCES: Explained(
        "permission is denied", "check the owner and permissions of the file and of each directory above it"
    ),
    errno.EPERM: Explained("the operation is not permitted", "check owner, permissions and attributes (`lsattr`)"),
    errno.ENOENT: Explained(
        "there is no such file or directory", "check the path; a link may lead nowhere, a disk may not be mounted"
    ),
    errno.ENOTDIR: Explained("a part of the path is a file, not a directory", "check the path"),
    errno.EISDIR: Explained("it is a directory, not a file", "check the path"),
    errno.EEXIST: Explained("something of that name is there already", "move it away, or name another place"),
    errno.ENOTEMPTY: Explained("the directory is not empty", "another process may have written into it: run again"),
    errno.ELOOP: Explained("symbolic links lead in a circle", "correct the links (`namei -l PATH` shows them)"),
    errno.ENAMETOOLONG: Explained("the path is too long", "name a shorter directory"),
    errno.EINVAL: Explained(
        "the file system does not offer what was asked of it", "name a directory on a local file system (ext4, xfs)"
    ),
    errno.EXDEV: Explained("it lies on another file system", "name a directory, not a link or mount point"),
    errno.EBUSY: Explained("it is in use, or a mount point", "name a directory below it"),
    errno.EMFILE: Explained("this process has too many open files", "raise the limit: `ulimit -n 65536`"),
    errno.ENFILE: Explained("this machine has too many open files", "end what holds them (`lsof`), or raise fs.file-max"),
    errno.ENOMEM: Explained("there is no memory left", "free memory, or take less at once"),
    errno.EIO: Explained(
        "the disk or its connection fails", "look at `dmesg`; then run again, from a copy if the disk is damaged"
    ),
    errno.ESTALE: Explained("the network file system has lost the file", "mount it again, then run again"),
    errno.ETIMEDOUT: Explained("the network file system does not answer", "check its server, then run again"),
    errno.ENOTCONN: Explained("the file system's server or driver has gone", "mount it again, then run again"),
    errno.ESHUTDOWN: Explained("the network file system has cut this machine off", "mount it again, then run again"),
    errno.EREMOTEIO: Explained("the file system's server reports a fault", "look at the server's log, then run again"),
    errno.EFBIG: Explained("the file is larger than allowed", "raise `ulimit -f`, or use another file system"),
    errno.ENOLCK: Explained(
        "the file system has no locks", "mount it with locks (NFS: lockd; Lustre: -o flock), or lock elsewhere"
    ),
    errno.EOPNOTSUPP: Explained("the file system does not offer this", "use another file system for it"),
    errno.ENOSYS: Explained("the file system does not offer this", "use another file system for it"),
    errno.ETXTBSY: Explained("the file is being run", "end that program first"),
}

_IN_WORDS: Final = (  # Arrow and others give no number
    ("No space left", errno.ENOSPC),
    ("quota exceeded", errno.EDQUOT),
    ("Read-only file system", errno.EROFS),
    ("Too many open files", errno.EMFILE),
    ("Input/output error", errno.EIO),
    ("Permission denied", errno.EACCES),
    ("Stale file handle", errno.ESTALE),
)

NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})
"""Errors of flock on a file system without locks."""

HELD: Final = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES})
"""Errors of flock if another process holds the lock."""

STARVED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors of the process or machine, not of the file: any other file would have failed too."""


ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
"""Nothing is there. The caller knows what is missing and where to get it."""

_NUMBERED: Final = re.compile(r"\[errno (\d+)\]|\(os error (\d+)\)", re.IGNORECASE)
"""Error numbers as Arrow and Rust write them."""


def number_of(error: BaseException) -> int | None:
    """The errno; from the message if a library gives no number."""
    if (number := _given(error)) is not None:
        return number
    message = str(error).lower()
    return next((number for words, number in _IN_WORDS if words.lower() in message), None)


def _given(error: BaseException) -> int | None:
    number = getattr(error, "errno", None)
    if number is None and (written := _NUMBERED.search(str(error))):
        number = int(written[1] or written[2])
    return number if isinstance(number, int) and number in errno.errorcode else None


_OF_SOCKETS: Final = frozenset({errno.ETIMEDOUT, errno.ENOTCONN, errno.ESHUTDOWN})
"""Errors that a library's exception of any class may have from a connection."""


def refused_by_system(error: BaseException) -> Explained | None:
    """Cause and remedy if the operating system reported the error, also behind a library's exception.

    None for absent files (see ABSENT), network errors and damaged content: no error number says what to do about these.
    """
    cause: BaseException | None = error
    while cause is not None:
        number = _given(cause)
        if number is not None and number in _KNOWN and number not in ABSENT and not _is_of_network(cause, number):
            return _KNOWN[number]
        cause = cause.__cause__
    return None


def _is_of_network(error: BaseException, number: int) -> bool:
    """Whether a connection failed. Network file systems use the same numbers; these errors name a file, or come from Arrow."""
    if not isinstance(error, ConnectionError | TimeoutError) and number not in _OF_SOCKETS:
        return False
    return getattr(error, "filename", None) is None and "Detail: [errno" not in str(error)


def explained(error: BaseException, remedy: str = "") -> Explained:
    """Cause and remedy. `remedy`: what to do if the error number suggests nothing better."""
    number = number_of(error)
    if number in _KNOWN:
        return _KNOWN[number]
    words = os.strerror(number) if number is not None else str(error).partition("\n")[0] or type(error).__name__
    return Explained(words, remedy or "check the path, the disk and the permissions")


def is_full(error: BaseException) -> bool:
    """Whether there is no room left."""
    return number_of(error) in (errno.ENOSPC, errno.EDQUOT)
