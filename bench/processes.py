"""Usage of a build's processes: peak memory and processor time by kind, sampled four times a second."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Final

import psutil

_KINDS: Final = {"ray::WorkerActor": "worker", "raylet": "Ray", "gcs_server": "Ray", "ray": "Ray"}
_EVERY_S: Final = 0.25


@dataclass
class Usage:
    """Usage of one kind of process. `mib` is that of the largest; `cpu_s` is the sum over all, `busiest_s` that of the busiest."""

    mib: float = 0.0
    cpu_s: float = 0.0
    busiest_s: float = 0.0


@dataclass
class _Process:
    kind: str
    bytes: int = 0
    cpu_s: float = 0.0
    watched: psutil.Process | None = field(default=None, repr=False)


class ProcessWatch:
    """Watches a process and all that it starts, until `stop`. The process itself is of the kind ``driver``."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._found: dict[int, _Process] = {pid: _Process("driver", watched=self._root)}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while True:
            self._look()
            if self._stop.wait(_EVERY_S):
                return

    def _look(self) -> None:
        try:
            children = self._root.children(recursive=True)
        except psutil.Error:
            return
        for child in children:
            known = self._found.get(child.pid)
            if known is None:
                self._found[child.pid] = _Process(_kind_of(child), watched=child)
            elif known.kind != "worker":  # an idle worker of Ray may become one
                known.kind = _kind_of(child, known.kind)
        for process in self._found.values():
            try:
                assert process.watched is not None
                times, memory = process.watched.cpu_times(), process.watched.memory_info()
                process.cpu_s, process.bytes = times.user + times.system, max(process.bytes, memory.rss)
            except psutil.Error:  # it has ended: its last sample counts
                continue

    def stop(self) -> dict[str, Usage]:
        """Usage by kind: ``driver``, ``worker``, ``Ray`` and ``other``."""
        self._stop.set()
        self._thread.join()
        usage: dict[str, Usage] = {}
        for process in self._found.values():
            one = usage.setdefault(process.kind, Usage())
            one.mib = max(one.mib, process.bytes / 2**20)
            one.busiest_s = max(one.busiest_s, process.cpu_s)
            one.cpu_s += process.cpu_s
        return usage


def _kind_of(process: psutil.Process, before: str = "other") -> str:
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return before
    return next((kind for word, kind in _KINDS.items() if word in words), before)
