"""Reads answers by fingerprint and records new ones.

Several processes write at once, each to its own journal and segments. Each sees the segments that existed when it began, and
its own. Of two answers to one fingerprint, a usable one wins over a failure, then the one in the first segment.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.ledger.entry import ANSWER_COLUMNS, TRANSIENT, Entry, to_answer
from pipeline.ledger.journal import UNLOCKED, Journal, LedgerError, read_journal, remove_unlocked, take_lock, unwritten
from pipeline.ledger.segment import SegmentStore, look_up_keys
from schemas.errors import ConfigError
from schemas.teacher import Outcome, TeacherAnswer

_GROUPS_KEPT: Final = 64
_GENERATIONS: Final = 6
_SUFFIX: Final = ".journal"

_INDEX_COLUMNS: Final = ["fingerprint", "outcome"]


class _Generation:
    """Sorted look-up table of some segments. 16 bytes per answer."""

    def __init__(self, keys: NDArray[np.uint64], places: NDArray[np.uint64]) -> None:
        order = np.argsort(keys, kind="stable")
        self.keys, self.places = keys[order], places[order]

    def find(self, key: int) -> NDArray[np.uint64]:
        wanted = np.uint64(key)
        start = int(self.keys.searchsorted(wanted))
        if start == len(self.keys) or self.keys[start] != wanted:
            return self.places[:0]
        end = start + 1
        if end < len(self.keys) and self.keys[end] == wanted:  # rare: two answers to one request
            end = int(self.keys.searchsorted(wanted, side="right"))
        return self.places[start:end]


class Ledger:
    """One process's view of a ledger, for one event loop. Sealing runs in a separate thread.

    Args:
        location: directory or URI of the segments.
        journals: local directory of the journals; by default beside local segments.
        segment_answers: answers after which a segment is sealed.
        retry_failed: permanent failures count as unanswered, unless they come from this process.
    """

    def __init__(
        self, location: str | Path, *, journals: Path | None = None, segment_answers: int = 20_000, retry_failed: bool = False
    ) -> None:
        self.store = SegmentStore(location)
        self._journals = journals_directory(self.store, journals)
        self._segment_answers, self._retry_failed = segment_answers, retry_failed
        self._writer = f"{int(time.time()):011d}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._number = 0
        self.failure: LedgerError | None = None
        """Why the last answer could not be recorded. If set, no more requests should be sent."""
        self.suspects: set[bytes] = set()
        """Requests that were in flight when a server died. `get` tells whether one has been answered since."""
        self._journal: Journal | None = None
        self._fresh: dict[bytes, Entry] = {}
        self._segments: list[str] = []
        self._generations: list[_Generation] = []
        self._files: dict[int, pq.ParquetFile] = {}
        self._groups: OrderedDict[tuple[int, int], list[dict[str, Any]]] = OrderedDict()
        self._chosen: dict[bytes, dict[str, Any]] = {}
        """Rows of `_groups` that answer their request: most are the only answer to it and are found without a search."""
        self._sealing: list[tuple[threading.Thread, Journal, str, list[BaseException]]] = []
        self.refresh()

    def refresh(self) -> None:
        """Reads the location again, for segments that other processes have sealed."""
        known = set(self._segments)
        new = [name for name in self.store.names() if name not in known]
        if new:
            self._index(new, retry_failed=self._retry_failed)

    def __len__(self) -> int:
        """Answers that can be looked up."""
        return sum(len(generation.keys) for generation in self._generations) + len(self._fresh)

    def get(self, fingerprint: bytes) -> TeacherAnswer | None:
        """The answer to a request, if there is one."""
        if fingerprint in self._fresh:
            return to_answer(self._fresh[fingerprint])
        if (chosen := self._chosen.get(fingerprint)) is not None:
            return to_answer(chosen)
        key = int.from_bytes(fingerprint[:8], "big")
        best: dict[str, Any] | None = None
        places = [place for generation in self._generations for place in generation.find(key).tolist()]
        for place in sorted(places, key=lambda place: (self._segments[place >> 32], place)) if len(places) > 1 else places:
            row = self._row(place)
            if row["fingerprint"] == fingerprint and (best is None or (best["outcome"] != "ok" and row["outcome"] == "ok")):
                best = row
        if best is None:
            return None
        self._chosen[fingerprint] = best  # the search costs several times what the answer does
        return to_answer(best)

    def append(self, entry: Entry) -> None:
        """Records an answer. It survives the death of this process as soon as this returns."""
        if self._journal is None:
            self._number += 1
            self._journal = Journal(self._journals / f"{self._writer}-{self._number:05d}{_SUFFIX}")
        try:
            self._journal.append(entry)
        except LedgerError as error:
            self.failure = error
            raise
        outcome = Outcome(entry["outcome"])
        if outcome not in TRANSIENT:
            self._fresh[bytes.fromhex(entry["fingerprint"])] = entry
        elif outcome is Outcome.LOST_WITH_SERVER:
            self.suspects.add(bytes.fromhex(entry["fingerprint"]))
        if len(self._journal.entries) >= self._segment_answers:
            self._rotate()

    def sync(self) -> None:
        journal = self._journal  # read once: the writer's thread may replace it
        if journal is not None:
            journal.sync()

    def collect(self) -> None:
        """Adds newly sealed segments to the index. Raises errors that occurred while sealing."""
        for item in list(self._sealing):
            thread, journal, name, errors = item
            if thread.is_alive():
                continue
            self._sealing.remove(item)
            if errors:
                raise errors[0]
            self._index([name], retry_failed=False)
            for entry in journal.entries:
                self._fresh.pop(bytes.fromhex(entry["fingerprint"]), None)

    def close(self) -> None:
        """Seals the current journal."""
        if self._journal is not None:
            self._rotate()
        for thread, *_ in self._sealing:
            thread.join()
        self.collect()
        self._files.clear()

    def _rotate(self) -> None:
        journal, self._journal = self._journal, None
        if journal is None:
            return
        name = f"segment-{journal.path.name.removesuffix(_SUFFIX)}.parquet"
        errors: list[BaseException] = []

        def seal() -> None:
            try:
                journal.sync()
                self.store.write(name, journal.entries)
                journal.path.unlink()
                journal.close()
            except OSError as error:
                errors.append(unwritten(error, journal.path))
            except BaseException as error:  # noqa: BLE001 (raised again by `collect`, in the writer's own thread)
                errors.append(error)

        thread = threading.Thread(target=seal, name="seal", daemon=True)
        self._sealing.append((thread, journal, name, errors))
        thread.start()
        self.collect()

    def _index(self, names: list[str], *, retry_failed: bool) -> None:
        self._chosen.clear()  # another answer may have come
        keys, places = [], []
        for name in names:
            table = self.store.read(name, columns=_INDEX_COLUMNS)
            number = len(self._segments)
            self._segments.append(name)
            if not len(table):
                continue
            outcome = np.asarray(table["outcome"].to_pylist())
            for row in np.flatnonzero(outcome == str(Outcome.LOST_WITH_SERVER)).tolist():
                self.suspects.add(table["fingerprint"][row].as_py())
            is_final = (outcome == "ok") if retry_failed else ~np.isin(outcome, [str(o) for o in TRANSIENT])
            rows = np.flatnonzero(is_final).astype(np.uint64)
            keys.append(look_up_keys(table)[is_final])
            places.append((np.uint64(number) << np.uint64(32)) | rows)
        if keys:
            self._generations.append(_Generation(np.concatenate(keys), np.concatenate(places)))
        if len(self._generations) > _GENERATIONS:
            merged = _Generation(
                np.concatenate([generation.keys for generation in self._generations]),
                np.concatenate([generation.places for generation in self._generations]),
            )
            self._generations = [merged]

    def _row(self, place: int) -> dict[str, Any]:
        number, row = place >> 32, place & 0xFFFFFFFF
        file = self._files.get(number)
        if file is None:
            file = self._files[number] = self.store.open(self._segments[number])
        size = file.metadata.row_group(0).num_rows
        group = int(row // size)
        key = (number, group)
        rows = self._groups.get(key)
        if rows is None:
            rows = self._groups[key] = self.store.read_rows(self._segments[number], file, group, ANSWER_COLUMNS)
            self._note_only_answers(rows, place - row + group * size)
            if len(self._groups) > _GROUPS_KEPT:
                for old in self._groups.popitem(last=False)[1]:
                    self._chosen.pop(old["fingerprint"], None)
        else:
            self._groups.move_to_end(key)
        entry: dict[str, Any] = rows[row - group * size]
        return entry

    def _note_only_answers(self, rows: list[dict[str, Any]], first: int) -> None:
        """Adds those of a row group's rows to `_chosen`; `first` is the place of the first one."""
        keys = np.frombuffer(b"".join([row["fingerprint"] for row in rows]), ">u8")[::2].astype(np.uint64)
        places = np.uint64(first) + np.arange(len(rows), dtype=np.uint64)
        answers, indexed = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.bool_)
        for generation in self._generations:
            if not len(generation.keys):
                continue
            start = generation.keys.searchsorted(keys)
            answers += generation.keys.searchsorted(keys, side="right") - start
            indexed |= generation.places[np.minimum(start, len(generation.places) - 1)] == places
        for number in np.flatnonzero((answers == 1) & indexed).tolist():
            self._chosen[rows[number]["fingerprint"]] = rows[number]


def journals_directory(store: SegmentStore, journals: Path | None) -> Path:
    if journals is not None:
        return journals
    if not store.is_local:
        raise ConfigError(
            "a ledger that is not on a local file system needs `ledger.journal`",
            "name a directory on a local disk; answers wait there until they are sealed into a segment",
        )
    return Path(store.root) / "journals"


class Recovery:
    """What was recovered from writers that died."""

    def __init__(self) -> None:
        self.journals = self.answers = self.damaged = 0
        self.busy: list[Path] = []


def recover(location: str | Path, journals: Path | None = None, *, wait_s: float = 0.0) -> Recovery:
    """Seals the journals of writers that died. Journals of living writers are left alone and listed in `busy`."""
    store = SegmentStore(location)
    directory = journals_directory(store, journals)
    recovery, until = Recovery(), time.monotonic() + wait_s
    sealed = set(store.names())
    for path in sorted(directory.glob(f"*{_SUFFIX}")):
        lock = take_lock(path)
        while lock is None and path.exists() and time.monotonic() < until:
            time.sleep(0.2)
            lock = take_lock(path)
        if lock is None:
            if path.exists():
                recovery.busy.append(path)
            continue
        try:
            if not path.exists():  # its writer sealed it while we waited
                continue
            name = f"segment-{path.name.removesuffix(_SUFFIX)}.parquet"
            recovered = read_journal(path)
            recovery.journals += 1
            recovery.damaged += recovered.damaged
            if name not in sealed and recovered.entries:
                store.write(name, recovered.entries)
                recovery.answers += len(recovered.entries)
            path.unlink()
        finally:
            os.close(lock)
    for path in directory.glob(f"*{_SUFFIX}{UNLOCKED}"):
        remove_unlocked(path)
    return recovery


__all__ = ["Ledger", "LedgerError", "Recovery", "journals_directory", "recover"]
