"""Runs the real commands in their own processes, and describes a failure."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
TAIL: Final = 40
"""Number of lines of a failed command's output to show."""
_STOP_SECONDS: Final = 30


class StageFailed(Exception):
    """A stage whose command failed or did not do what it should. The message has the command and the end of its output."""


def mbeir_cot(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "mbeir_cot", *map(str, arguments)]


def run(command: list[str], *, log: Path, timeout: float = 900) -> str:
    """Runs a command and returns its output. Raises StageFailed unless it exits with 0."""
    with started(command, log=log) as process:
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise failed(command, log, f"had not ended after {timeout:.0f} s") from None
    if code:
        raise failed(command, log, f"ended with {code}")
    return log.read_text(errors="replace", encoding="utf-8")


@contextmanager
def started(command: list[str], *, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command in the background, in a process group that ends with the context. Its output goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "COLUMNS": "140",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and its group at once, like a machine that fails."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def await_text(process: subprocess.Popen[bytes], command: list[str], log: Path, text: str, *, timeout: float) -> None:
    """Waits until a running command has printed `text`."""
    until = time.monotonic() + timeout
    while text not in log.read_text(errors="replace", encoding="utf-8"):
        if process.poll() is not None:
            raise failed(command, log, f"ended with {process.returncode} before it printed {text!r}")
        if time.monotonic() > until:
            raise failed(command, log, f"had not printed {text!r} after {timeout:.0f} s")
        time.sleep(0.5)


def await_steps(
    process: subprocess.Popen[bytes], command: list[str], log: Path, metrics: Path, steps: int, *, timeout: float
) -> None:
    """Waits until a running training has logged `steps` steps."""
    until = time.monotonic() + timeout
    while len(lines_of(metrics)) < steps:
        if process.poll() is not None:
            raise failed(command, log, f"ended with {process.returncode} before step {steps}")
        if time.monotonic() > until:
            raise failed(command, log, f"was not at step {steps} after {timeout:.0f} s")
        time.sleep(0.2)


def lines_of(metrics: Path) -> list[dict[str, float]]:
    """Reads the complete lines of a metrics file; the last may be half written."""
    if not metrics.is_file():
        return []
    return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def failed(command: list[str], log: Path, what: str) -> StageFailed:
    lines = (
        [line.rpartition("\r")[2] for line in log.read_text(errors="replace", encoding="utf-8").splitlines()]
        if log.is_file()
        else []
    )
    tail = "\n".join(f"    {line}" for line in lines[-TAIL:])
    shown = shlex.join(command).replace(f"{sys.executable} -m mbeir_cot", "mbeir-cot")
    return StageFailed(f"{shown}\n  {what}; the end of {log}:\n{tail}")
