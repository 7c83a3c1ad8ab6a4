"""Reads JSON files that the program wrote; a damaged one is an error that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel

from schemas.errors import InputError
from schemas.os_errors import explained

M = TypeVar("M", bound=BaseModel)

_AGAIN: Final = "restore it, or remove it and what was made with it, and run the command that makes it again"


def read_json(path: Path, remedy: str = _AGAIN) -> Any:
    """The file's content. Raises InputError for a file that is damaged or cannot be read."""
    return _read(path, json.loads, remedy)


def read_model(path: Path, model: type[M], remedy: str = _AGAIN) -> M:
    """The file's content as `model`. Raises InputError as `read_json` does, also for one of another version."""
    found: M = _read(path, model.model_validate_json, remedy)
    return found


def read_lines(path: Path) -> list[Any]:
    """Of a JSON Lines file that is appended to; a last line that was torn by a kill is left out. Empty if there is no file."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise InputError(f"{path}, line {number}, is damaged: {error}", _AGAIN) from error
    return found


def _read(path: Path, parse: Any, remedy: str) -> Any:
    try:
        return parse(path.read_bytes())
    except OSError as error:
        cause, what = explained(error)
        raise InputError(f"{path} cannot be read: {cause}", what) from error
    except ValueError as error:  # pydantic's and json's; bytes that are no UTF-8
        raise InputError(f"{path} is damaged or of another version: {str(error).splitlines()[0]}", remedy) from error
