"""The progress display of a build, and the file that `mbeir-cot status` reads."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

import orjson
from pydantic import BaseModel, ConfigDict
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.annotate.worker_stats import WorkerStats
from pipeline.progress_meter import is_quiet

logger = logging.getLogger(__name__)

_PLAIN_S: Final = 15.0
_FILE_S: Final = 2.0


class BuildProgress(BaseModel):
    """The state of a build at one moment."""

    model_config = ConfigDict(extra="forbid")

    state: str
    """`reading`, `starting the teacher`, `running`, `stopping`, `writing`, `stopped`, `failed` or `finished`."""
    pid: int
    host: str
    total: int = 0
    done: int = 0
    reasoning: int = 0
    bypass: int = 0
    rejected: dict[str, int] = {}
    in_flight: int = 0
    limit: int = 0
    asked: int = 0
    known: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    elapsed_s: float = 0.0
    annotating_s: float = 0.0
    """From the first finished annotation to the last."""
    rate: float = 0.0
    """Queries per second over the last half minute."""
    tokens_rate: float = 0.0
    eta_s: float | None = None
    message: str = ""

    @property
    def think_rate(self) -> float | None:
        records = self.reasoning + self.bypass
        return self.reasoning / records if records else None


class Board:
    """Collects stats; shows them live on a terminal, else as a line at intervals; writes the progress file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._quiet = is_quiet()
        self._console = Console(stderr=True, quiet=self._quiet, highlight=False, emoji=False)
        self._live: Live | None = None
        self._began = time.monotonic()
        self._shown = self._written = 0.0
        self._done = 0
        self._first: float | None = None
        self._seen = self._began
        self._history: list[tuple[float, int, int]] = []
        self.progress = BuildProgress(state="reading", pid=os.getpid(), host=socket.gethostname())

    def begin(self, total: int) -> None:
        self.progress.total = total
        if self._console.is_terminal and not self._quiet:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()

    def state(self, state: str, message: str = "") -> None:
        """Shows the new state at once."""
        if state != self.progress.state or message:
            self.progress.state, self.progress.message = state, message
            logger.info("state: %s%s", state, f" ({message})" if message else "")
            if self._live is None and not self._quiet:
                print(f"build: {state}{f': {message}' if message else ''}", file=sys.stderr, flush=True)
            self.write()

    def update(self, stats: list[WorkerStats], done: int) -> None:
        """`done`: queries of finished chunks. The stats add the queries that are finished in the others."""
        now = time.monotonic()
        progress = self.progress
        rejected: Counter[str] = Counter()
        for tally in stats:
            rejected += tally.rejected
        progress.done = min(progress.total, max(done, sum(tally.done for tally in stats)))
        for name in ("reasoning", "bypass", "in_flight", "limit", "asked", "known", "prompt_tokens", "completion_tokens"):
            setattr(progress, name, sum(getattr(tally, name) for tally in stats))
        progress.rejected = dict(rejected.most_common())
        progress.elapsed_s = round(now - self._began, 1)
        if progress.done > self._done:
            self._first = self._first or self._seen
            self._done = progress.done
            progress.annotating_s = now - (self._first or now)
        self._seen = now
        self._history.append((now, progress.done, progress.completion_tokens + progress.prompt_tokens))
        while now - self._history[0][0] > 30:
            self._history.pop(0)
        began, done_then, tokens_then = self._history[0]
        if now > began:
            progress.rate = (progress.done - done_then) / (now - began)
            progress.tokens_rate = (self._history[-1][2] - tokens_then) / (now - began)
        progress.eta_s = (progress.total - progress.done) / progress.rate if progress.rate > 0 else None
        if self._live is not None:
            self._live.update(self._drawn())
        elif not self._quiet and now - self._shown >= _PLAIN_S and progress.done < progress.total:
            self._shown = now
            print(f"build: {line(progress)}", file=sys.stderr, flush=True)
        if now - self._written >= _FILE_S:
            self.write()

    def end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def write(self) -> None:
        """Best effort: a failed write must not end the build."""
        self._written = time.monotonic()
        temporary = self._file.with_suffix(".tmp")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(orjson.dumps(self.progress.model_dump()))
            temporary.replace(self._file)
        except OSError:
            temporary.unlink(missing_ok=True)

    def _drawn(self) -> Group:
        progress = self.progress
        table = Table.grid(padding=(0, 2))
        for label, value in facts(progress):
            table.add_row(Text(label, style="dim"), Text(value))
        bar = ProgressBar(total=max(1, progress.total), completed=progress.done, width=60)
        return Group(Text(f"{progress.state}  {progress.message}"), bar, table)


def facts(progress: BuildProgress) -> list[tuple[str, str]]:
    """The progress as labelled figures."""
    rejected = sum(progress.rejected.values())
    top = ", ".join(f"{name} {count:,}" for name, count in list(progress.rejected.items())[:3])
    think = f"{progress.think_rate:.0%}" if progress.think_rate is not None else "-"
    return [
        ("queries", f"{progress.done:,} of {progress.total:,}, {progress.rate:,.1f}/s, {_eta(progress)}"),
        ("records", f"{progress.reasoning:,} reasoning, {progress.bypass:,} bypass (think rate {think})"),
        ("rejected", f"{rejected:,}{f' ({top})' if top else ''}"),
        ("requests", f"{progress.asked:,} asked, {progress.known:,} from the ledger, {progress.in_flight} in flight"),
        (
            "tokens",
            f"{progress.prompt_tokens:,} in, {progress.completion_tokens:,} out, {progress.tokens_rate:,.0f}/s",
        ),
    ]


def line(progress: BuildProgress) -> str:
    """The progress in one line."""
    share = progress.done / progress.total if progress.total else 1.0
    rejected = sum(progress.rejected.values())
    think = f", think rate {progress.think_rate:.0%}" if progress.think_rate is not None else ""
    return (
        f"{share:.0%} ({progress.done:,} of {progress.total:,}), {progress.rate:,.1f}/s, {_eta(progress)}; "
        f"{progress.reasoning:,} reasoning, {progress.bypass:,} bypass, {rejected:,} rejected{think}; "
        f"{progress.asked:,} asked, {progress.known:,} known, {progress.in_flight} in flight, "
        f"{progress.tokens_rate:,.0f} tokens/s"
    )


def _eta(progress: BuildProgress) -> str:
    if progress.eta_s is None:
        return "no rate yet"
    seconds = int(progress.eta_s)
    hours, minutes = divmod(seconds // 60, 60)
    return (
        f"{hours} h {minutes} min left" if hours else f"{minutes} min {seconds % 60} s left" if minutes else f"{seconds} s left"
    )
