"""Progress of long work: a bar with rate and remaining time on a terminal, else a plain line at intervals."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

TERMINAL_SECONDS: Final = 0.2
PLAIN_SECONDS: Final = 10.0

_hushed = 0
"""Number of active `quiet_progress` contexts in this process."""


@contextmanager
def quiet_progress(quiet: bool = True) -> Iterator[None]:
    """Hides this process's progress while the context lasts, if `quiet`. Training passes it on to the processes that it
    starts."""
    global _hushed  # noqa: PLW0603 (one switch per process, as logging has)
    _hushed += quiet
    try:
        yield
    finally:
        _hushed -= quiet


def is_quiet() -> bool:
    """Whether progress is hidden."""
    return _hushed > 0


class Meter:
    """Shows how many of `total` units (or bytes) are done, on stderr. Cheap enough to be advanced for every row."""

    def __init__(self, title: str, total: int, *, unit: str = "bytes") -> None:
        quiet = is_quiet()
        self.title, self.total, self.unit = title, total, unit
        self.done = self._before = 0
        self.note = ""
        self._console = Console(stderr=True, quiet=quiet, emoji=False)
        self._live = self._console.is_terminal and not quiet
        self._quiet = quiet
        self._began = self._shown = time.monotonic()
        counter: ProgressColumn = DownloadColumn(binary_units=True) if unit == "bytes" else MofNCompleteColumn()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            counter,
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        self._progress = Progress(*columns, console=self._console, transient=True, disable=not self._live)
        self._task = self._progress.add_task(title, total=total, note="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def resume(self, done: int) -> None:
        """Counts work of an earlier process towards the total, but not towards the rate."""
        self.done = self._before = done

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def advance(self, amount: int = 1) -> None:
        self.done += amount
        now = time.monotonic()
        if now - self._shown >= (TERMINAL_SECONDS if self._live else PLAIN_SECONDS):
            self._shown = now
            self._show(now)

    def _show(self, now: float) -> None:
        if self._live:
            self._progress.update(self._task, completed=self.done, note=self.note)
        elif not self._quiet:
            share = self.done / self.total if self.total else 1.0
            elapsed = now - self._began
            made = self.done - self._before
            left = f", about {(self.total - self.done) * elapsed / made:.0f} s left" if made and share < 1 else ""
            rate = f"{self._amount(made / elapsed)}/s" if elapsed else ""
            print(
                f"{self.title}: {share:.0%} ({self._amount(self.done)}, {rate}){left} {self.note}".rstrip(),
                file=sys.stderr,
                flush=True,
            )

    def _amount(self, value: float) -> str:
        if self.unit == "bytes":
            return f"{value / 2**20:,.1f} MiB"
        return f"{value:,.{0 if value >= 10 or value == int(value) else 2}f} {self.unit}"
