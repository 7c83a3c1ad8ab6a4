"""faiss's files: written whole or not at all; one that is damaged is named, with what makes it again."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import faiss

from pipeline.files.durable import sync
from schemas.errors import InputError
from schemas.os_errors import explained, number_of

_OF_THE_DISK: Final = frozenset({errno.EIO, errno.ESTALE})


def read_faiss(path: Path, read: Callable[[str], Any], remedy: str) -> Any:
    """read: faiss's function. remedy: for a file that is missing or damaged. Raises InputError."""
    try:
        path.open("rb").close()  # faiss gives no error number, and in its words an old one after a short read
        return read(str(path))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing", remedy) from error
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) or number_of(error) in _OF_THE_DISK:
            raise InputError(f"{path} cannot be read: {explained(error).cause}", explained(error).remedy) from error
        raise InputError(f"{path} is damaged: {_last_line(error)}", remedy) from error


def write_faiss(path: Path, write: Callable[[Any, Any], None], index: Any) -> None:
    """write: faiss's function. Raises InputError, and leaves what was there, if the system refuses."""
    new = path.with_name(f".{path.name}.new")
    try:
        with new.open("wb") as file:
            # its own writer does not notice a disk that fills at the end
            write(index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]
        sync(new)
        new.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        raise InputError(f"{path} cannot be written: {explained(error).cause}", explained(error).remedy) from error


def _last_line(error: BaseException) -> str:
    """faiss's own words come after the place in its source."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
