"""JSON Lines into validated rows, with errors that name file, line, key and value.

`strict` fails on malformed lines; after the first it only collects more, so that one run lists up to 20. `skip` writes each
malformed line to a rejects file and continues: every line is either yielded or recorded.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TextIO, TypeVar

from pydantic import BaseModel, ValidationError

from schemas.errors import ConfigError, InputError
from schemas.os_errors import explained

BLOCK_BYTES: Final = 4 << 20
MAX_LINE_BYTES: Final = 64 << 20
MAX_LISTED: Final = 20
_SHOWN_CHARACTERS: Final = 120
_RECORDED_CHARACTERS: Final = 4096

Row = TypeVar("Row", bound=BaseModel)


class LinePolicy(StrEnum):
    STRICT = "strict"
    SKIP = "skip"


class LineProblem(NamedTuple):
    """A problem of a line. `key` is empty if the line is not a JSON object."""

    file: str
    line: int
    key: str
    value: str
    problem: str

    @property
    def finding(self) -> str:
        """The problem without file and line."""
        return f"{self.key} = {self.value}: {self.problem}" if self.key else self.problem

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.finding}"


class MalformedInput(InputError):
    """Lines that cannot be read. `problems` holds the first 20."""

    def __init__(self, problems: list[LineProblem], more: bool = False) -> None:
        listed = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(
            f"malformed input in {problems[0].file}:\n{listed}" + ("\n  … and more" if more else ""),
            "correct the file or download it again (`mbeir-cot mbeir check DIR` lists every problem), "
            "or, of a query file, build with --set input.malformed_lines=skip, which records each in a file",
        )
        self.problems = problems
        self.more = more

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems, self.more)


class RejectsFile:
    """The file of malformed lines that `skip` writes, one JSON object per line. Created with the first one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def record(self, problems: list[LineProblem], raw: bytes) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8")
        first = problems[0]
        row = {
            "file": first.file,
            "line": first.line,
            "problems": [{"key": p.key, "value": p.value, "problem": p.problem} for p in problems],
            "raw": raw[:_RECORDED_CHARACTERS].decode("utf-8", "backslashreplace"),
            "raw_bytes": len(raw),
        }
        self._file.write(json.dumps(row) + "\n")
        self.lines += 1

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its line feed). Blank lines are skipped but counted; a BOM is removed."""
    for number, line, _ in _read_lines(path):
        yield number, line


def _block(file: io.FileIO, path: Path) -> bytes | None:
    try:
        return file.read(BLOCK_BYTES)
    except OSError as error:
        raise InputError(f"cannot read {path}: {explained(error).cause}", explained(error).remedy) from error


def _read_lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """As `read_lines`, and whether a line feed ended the line."""
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        raise InputError(f"no file {path}", "check the path; `mbeir-cot mbeir check DIR` lists missing files") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {explained(error).cause}", explained(error).remedy) from error
    with file:
        number, rest = 0, b""
        while block := _block(file, path):
            if number == 0 and not rest and block.startswith(b"\xef\xbb\xbf"):
                block = block[3:]
            lines = block.split(b"\n")
            lines[0] = rest + lines[0]
            rest = lines.pop()
            for line in lines:
                number += 1
                if line and not line.isspace():
                    yield number, line, True
            if len(rest) > MAX_LINE_BYTES:
                raise InputError(
                    f"{path}:{number + 1}: a line of more than {MAX_LINE_BYTES >> 20} MiB",
                    "this is not a JSON Lines file of M-BEIR; download it again",
                )
        if rest and not rest.isspace():
            yield number + 1, rest, False


def read_rows(
    path: Path, model: type[Row], *, policy: LinePolicy = LinePolicy.STRICT, rejects: RejectsFile | None = None
) -> Iterator[tuple[int, Row]]:
    """(line number, validated row) for each line.

    Raises MalformedInput under `strict`; `skip` needs a rejects file. Holds one block of the file in memory.
    """
    if policy is LinePolicy.SKIP and rejects is None:
        raise ConfigError("the line policy 'skip' needs a rejects file", "name one, so that no line is dropped silently")
    problems: list[LineProblem] = []
    for number, raw, row in scan_rows(path, model):
        if not isinstance(row, list):
            if not problems:  # after the first malformed line, only further problems are collected
                yield number, row
        elif rejects is not None and policy is LinePolicy.SKIP:
            rejects.record(row, raw)
        else:
            problems += row
            if len(problems) > MAX_LISTED:
                raise MalformedInput(problems[:MAX_LISTED], more=True)
    if problems:
        raise MalformedInput(problems)


def scan_rows(path: Path, model: type[Row]) -> Iterator[tuple[int, bytes, Row | list[LineProblem]]]:
    """(line number, raw line, validated row or its problems) for each line."""
    validate = model.model_validate_json
    for number, line, ended in _read_lines(path):
        try:
            row = validate(line)
        except ValidationError as error:
            yield number, line, line_problems(path, number, error, ended=ended)
        else:
            yield number, line, row


def line_problems(path: Path, number: int, error: ValidationError, *, ended: bool = True) -> list[LineProblem]:
    """Converts pydantic's errors about a line into problems."""
    problems = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "json_invalid":
            message = "not valid JSON: " + message.removeprefix("Invalid JSON: ")
            if not ended:
                message += "; the file ends inside this line, so the download may be truncated"
        elif item["type"] == "missing":
            message = "this key is missing"
        value = "" if item["type"] == "json_invalid" else _shown(item["input"])
        problems.append(LineProblem(str(path), number, key, "" if item["type"] == "missing" else value, message))
    return problems


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
