"""Faults in processes that a test cannot reach (Ray's workers). Python imports this module at start, because it is first on the path.

``MBEIR_COT_FAULTS`` names a JSON file: point -> fault. It is read each time a point is reached, so a test can arm and disarm faults
while the processes run. The program itself contains no trace of it. Points:

    journal: errno of the write after `after` writes     {"errno": 28, "after": 20}
    segment, sealed: SIGKILL, once, while a segment is sealed: before it is renamed, or before its journal is removed     {"marker": PATH}
    sealing: errno of the writing of a segment     {"errno": 28}
    assembly: SIGKILL, once, of this node's raylet (the node is lost) before the dataset is assembled     {"marker": PATH}
    locks: errno of every lock in these directories     {"errno": 37, "below": PATH}
    server: the command line of managed servers, with {port}     ["python", "-m", "…"]
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import time
from typing import Any

_FILE = os.environ.get("MBEIR_COT_FAULTS", "")


def armed(point: str) -> Any:
    try:
        with open(_FILE, encoding="utf-8") as file:  # noqa: PTH123
            return json.load(file).get(point)
    except (OSError, ValueError):
        return None


class _Instead:
    """A module with some functions replaced."""

    def __init__(self, module: Any, **ours: Any) -> None:
        self.__dict__.update(vars(module) | ours)


def _journal(module: Any) -> None:
    import fcntl

    written = 0

    def write(file: int, data: bytes) -> int:
        nonlocal written
        fault = armed("journal")
        written += 1
        if fault and written > fault["after"]:
            raise OSError(fault["errno"], os.strerror(fault["errno"]))
        return os.write(file, data)

    module.os = _Instead(os, write=write)
    module.fcntl = _Instead(fcntl, flock=flock)

    close = module.Journal.close

    def closing(self: Any) -> None:
        _kill_once("sealed")
        close(self)

    module.Journal.close = closing


def flock(file: int, how: int) -> None:
    import fcntl

    fault = armed("locks")
    if fault and os.path.realpath(f"/proc/self/fd/{file}").startswith(os.path.realpath(fault["below"])):
        raise OSError(fault["errno"], os.strerror(fault["errno"]))
    fcntl.flock(file, how)


def _segment(module: Any) -> None:
    sync = module.sync

    def killed(path: Any) -> None:
        _kill_once("segment")
        sync(path)

    module.sync = killed
    real = module.pq

    def write_table(*given: Any, **named: Any) -> None:
        if fault := armed("sealing"):
            raise OSError(fault["errno"], os.strerror(fault["errno"]))
        real.write_table(*given, **named)

    module.pq = _Instead(real, write_table=write_table)


def _build(module: Any) -> None:
    assemble = module.assemble

    def assembled(*given: Any, **named: Any) -> Any:
        if _first_time("assembly"):
            import ray

            ray._private.worker._global_node.kill_raylet()
            time.sleep(2)  # what hangs on it may notice
        return assemble(*given, **named)

    module.assemble = assembled


def _kill_once(point: str) -> None:
    if _first_time(point):
        os.kill(os.getpid(), signal.SIGKILL)


def _first_time(point: str) -> bool:
    """Whether the point is armed and was not reached before."""
    fault = armed(point)
    if not fault:
        return False
    try:
        os.close(os.open(fault["marker"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _server(module: Any) -> None:
    command = module.command

    def stand_in(config: Any, port: int, parent: int) -> list[str]:
        given = armed("server")
        return [part.replace("{port}", str(port)) for part in given] if given else command(config, port, parent)

    module.command = stand_in


_CHANGED = {
    "pipeline.build": _build,
    "pipeline.ledger.journal": _journal,
    "pipeline.ledger.segment": _segment,
    "pipeline.serving.server": _server,
}


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in _CHANGED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            _CHANGED[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if _FILE:
    sys.meta_path.insert(0, _Finder())
