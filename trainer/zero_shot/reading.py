"""JSON files of other projects: read whole, and taken apart with errors that name file, place and key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import orjson

from schemas.errors import InputError

T = TypeVar("T")

REMEDY: Final = "take the file as it is published: docs/zero-shot.md says where each comes from"
_NAMES: Final = {str: "a text", int: "an integer", float: "a number", list: "a list", dict: "an object"}


def read_json(path: Path, kind: type[T]) -> T:
    """The file's content, which is to be of this kind (list or dict). Reads the whole file."""
    try:
        content = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} is missing", REMEDY) from None
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}: no JSON, or cut off: {error}", f"download it again; {REMEDY}") from error
    if not isinstance(content, kind):
        raise InputError(f"{path}: {_NAMES.get(kind, kind.__name__)} is expected, not {type(content).__name__}", REMEDY)
    return content


class Record:
    """One object of a file, with its place in it for errors."""

    __slots__ = ("_content", "_path", "_place")

    def __init__(self, path: Path, place: str, content: Any) -> None:
        self._path, self._place = path, place
        if not isinstance(content, dict):
            raise self.wrong(f"an object is expected, not {type(content).__name__}")
        self._content = content

    def wrong(self, problem: str) -> InputError:
        return InputError(f"{self._path}, {self._place}: {problem}", REMEDY)

    def get(self, key: str, kind: type[T]) -> T:
        """The key's value; an error where it is absent or of another kind. An integer is a number, a truth value neither."""
        if key not in self._content:
            raise self.wrong(f"the key {key!r} is missing")
        value = self._content[key]
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or isinstance(value, bool):
            raise self.wrong(f"{key!r} is to be {_NAMES.get(kind, kind.__name__)}, not {type(value).__name__}")
        return cast("T", value)

    def each(self, key: str, kind: type[T]) -> list[T]:
        """The key's list, whose members are all to be of this kind."""
        values = self.get(key, list)
        for at, value in enumerate(values):
            if not isinstance(value, kind) or isinstance(value, bool):
                raise self.wrong(f"{key!r}[{at}] is to be {_NAMES.get(kind, kind.__name__)}, not {type(value).__name__}")
        return values

    def inner(self, key: str) -> Record:
        return Record(self._path, f"{self._place}, {key}", self.get(key, dict))

    def inners(self, key: str) -> list[Record]:
        return [Record(self._path, f"{self._place}, {key}[{at}]", one) for at, one in enumerate(self.get(key, list))]


def records(path: Path) -> Iterator[Record]:
    """The objects of a file that is a list of objects, in its order."""
    for at, content in enumerate(read_json(path, list)):
        yield Record(path, f"item {at}", content)
