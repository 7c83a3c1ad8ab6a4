"""The work of a build: every query once, in the order of the dataset, whatever the order and repetitions of the input.

In memory is only where a query's line lies and its place in the order (about 40 bytes). The lines are read again when they are
needed, so that a million queries take tens of megabytes in the driver.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.mbeir.jsonl import MAX_LISTED, LineProblem, MalformedInput, RejectsFile, line_problems
from pipeline.mbeir.layout import Layout, QueryFile
from pipeline.progress_meter import Meter
from schemas.config import InputConfig
from schemas.errors import InputError
from schemas.mbeir import DATASET_IDS, DATASET_NAMES, Query, Split

_BLOCK: Final = 8 << 20
_WIDTH: Final = 6
_ALPHABETIC: Final = {DATASET_IDS[name]: rank for rank, name in enumerate(sorted(DATASET_IDS))}


class WorkItem(NamedTuple):
    """One query to annotate. `line` is its JSON; `conflict` the line of a second row of its id with other contents."""

    line: bytes
    split: Split
    multiplicity: int
    conflict: bytes | None


@dataclass(frozen=True, slots=True)
class InputFile:
    """Provenance of an input: its path below the M-BEIR root."""

    path: str
    sha256: str
    lines: int


class WorkList:
    """The queries of a build in order of dataset name, task and number of the qid."""

    def __init__(
        self,
        split: Split,
        files: list[Path],
        columns: NDArray[np.int64],
        inputs: list[InputFile],
        *,
        keys: NDArray[np.int64],
        malformed: int,
    ) -> None:
        self.split = split
        self.inputs = inputs
        self.malformed = malformed
        self.keys = keys  # (n,), see `order_key`
        self._paths = files
        self._columns = columns  # (n, 6): file, offset, length, multiplicity, conflict offset, conflict length

    def __len__(self) -> int:
        return len(self._columns)

    @property
    def tasks(self) -> list[tuple[str, int]]:
        """The (dataset, task) of all queries, once each, in order."""
        return [task_of_key(int(key)) for key in np.unique(self.keys >> 32)]

    def chosen(self, rows: NDArray[np.int64]) -> WorkList:
        """The work of these rows only, in the same order."""
        rows = np.sort(rows)
        return WorkList(
            self.split, self._paths, self._columns[rows], self.inputs, keys=self.keys[rows], malformed=self.malformed
        )

    def read(self, start: int, stop: int) -> list[WorkItem]:
        """The items from `start` to `stop`."""
        items = []
        opened: dict[int, int] = {}
        try:
            for file, offset, length, multiplicity, at, size in self._columns[start:stop].tolist():
                if file not in opened:
                    opened[file] = os.open(self._paths[file], os.O_RDONLY)
                line = os.pread(opened[file], length, offset)
                conflict = os.pread(opened[file], size, at) if size else None
                items.append(WorkItem(line, self.split, multiplicity, conflict))
        finally:
            for descriptor in opened.values():
                os.close(descriptor)
        return items


def collect(layout: Layout, config: InputConfig, *, rejects: Path) -> WorkList:
    """Reads the query files of the split. Malformed lines raise, or are written to `rejects` (see `malformed_lines`)."""
    files = [file for file in layout.query_files() if file.split == config.split and _wanted(file, config)]
    if not files:
        raise InputError(
            f"{layout.root} has no query files of the split {config.split!r}"
            + (f" for {', '.join(config.datasets)}" if config.datasets else ""),
            "check `input.split` and `input.datasets`; `mbeir-cot mbeir stats DIR` shows what is there",
        )
    rejects.unlink(missing_ok=True)
    with (
        RejectsFile(rejects) as rejects_file,
        Meter("reading queries", sum(f.path.stat().st_size for f in files)) as meter,
    ):
        reader = _Reader(config, rejects_file, meter)
        inputs = [reader.read(number, layout, file) for number, file in enumerate(files)]
        columns, keys = reader.columns()
    paths = [file.path for file in files]
    work = WorkList(config.record_split, paths, columns, inputs, keys=keys, malformed=rejects_file.lines)
    if config.limit is not None and config.limit < len(work):
        work = work.chosen(drawn_order(keys)[: config.limit])
    return work


def _wanted(file: QueryFile, config: InputConfig) -> bool:
    if config.datasets and file.dataset is not None and file.dataset not in config.datasets:
        return False
    return not (config.tasks and file.dataset_task is not None and file.dataset_task.task_id not in config.tasks)


class _Reader:
    def __init__(self, config: InputConfig, rejects: RejectsFile, meter: Meter) -> None:
        self._config, self._rejects, self._meter = config, rejects, meter
        self._wanted_datasets = {DATASET_IDS[name] for name in config.datasets} or set(DATASET_NAMES)
        self._wanted_tasks = set(config.tasks) or set(range(9))
        self._seen: dict[int, int] = {}
        self._rows = array("q")  # _WIDTH numbers per query: a million queries in 50 MB
        self._contents = array("q")

    def read(self, number: int, layout: Layout, file: QueryFile) -> InputFile:
        digest, lines = hashlib.sha256(), 0
        problems: list[LineProblem] = []
        for line_number, (offset, line) in enumerate(_lines(file.path, digest), 1):
            self._meter.advance(len(line) + 1)
            if not line or line.isspace():
                continue
            lines += 1
            try:
                query = Query.model_validate_json(line)
            except ValidationError as error:
                line_errors = line_problems(file.path, line_number, error)
                if self._config.malformed_lines == "skip":
                    self._rejects.record(line_errors, line)
                    continue
                problems += line_errors
                if len(problems) > MAX_LISTED:
                    raise MalformedInput(problems[:MAX_LISTED], more=True) from None
                continue
            if query.dataset_id in self._wanted_datasets and query.task_id in self._wanted_tasks:
                self._add(number, offset, line, query)
        if problems:
            raise MalformedInput(problems)
        return InputFile(layout.relative(file.path), digest.hexdigest(), lines)

    def _add(self, number: int, offset: int, line: bytes, query: Query) -> None:
        key = order_key(query.dataset_id, query.task_id, query.qid)
        row, content = self._seen.get(key), hash(line)
        if row is None:
            self._seen[key] = len(self._contents)
            self._rows.extend((number, offset, len(line), 1, 0, 0))
            self._contents.append(content)
        elif self._contents[row] == content:
            self._rows[row * _WIDTH + 3] += 1
        elif not self._rows[row * _WIDTH + 5]:
            self._rows[row * _WIDTH + 4], self._rows[row * _WIDTH + 5] = offset, len(line)

    def columns(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What a work list holds of each query, and the keys, in the dataset's order."""
        keys = np.fromiter(self._seen.keys(), np.int64, len(self._seen))
        order = np.argsort(keys)
        rows = np.frombuffer(self._rows, np.int64).reshape(-1, _WIDTH)
        self._seen.clear()
        return rows[order], keys[order]


def _lines(path: Path, digest: hashlib._Hash) -> Iterator[tuple[int, bytes]]:
    """(offset, line without its end) of all lines; a byte-order mark is skipped."""
    with path.open("rb", buffering=0) as file:
        offset, rest = 0, b""
        while block := file.read(_BLOCK):
            digest.update(block)
            if offset == 0 and not rest and block.startswith(b"\xef\xbb\xbf"):
                block, offset = block[3:], 3
            lines = (rest + block).split(b"\n")
            rest = lines.pop()
            for line in lines:
                yield offset, line.removesuffix(b"\r")
                offset += len(line) + 1
        if rest:
            yield offset, rest


def order_key(dataset_id: int, task_id: int, qid: str) -> int:
    """Dataset by name, task, number of the qid: the order of the dataset in one integer."""
    return (_ALPHABETIC[dataset_id] * 16 + task_id) << 32 | int(qid[2:])


def task_of_key(key: int) -> tuple[str, int]:
    """(dataset, task) of the upper half of an `order_key`."""
    by_rank = {rank: dataset for dataset, rank in _ALPHABETIC.items()}
    return DATASET_NAMES[by_rank[key // 16]], key % 16


def drawn_order(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """All rows by the hashes of their keys: the first n are an even sample that does not depend on the other rows."""
    mixed = keys.astype(np.uint64)
    for factor in (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)):  # splitmix64's finaliser
        mixed = (mixed ^ (mixed >> np.uint64(29))) * factor
    mixed ^= mixed >> np.uint64(32)
    return np.argsort(mixed, kind="stable")
