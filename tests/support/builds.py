"""Shared by tests of builds: running the command, an oracle as teacher, and comparing datasets."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.support.cli import mbeir_cot

ROOT = Path(__file__).parents[2]


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Starts the real command in the background, in its own session."""
    return subprocess.Popen(
        [sys.executable, "-m", "mbeir_cot", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
        start_new_session=True,
        cwd=ROOT,
        preexec_fn=_die_with_parent,  # noqa: PLW1509 (the child only calls prctl)
    )


def _die_with_parent() -> None:
    """Makes the process end with the test, so that a failing test leaves no build behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def kill(process: subprocess.Popen[Any]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def digests(dataset: Path) -> dict[str, str]:
    """Returns path -> SHA-256 for all files of a dataset."""
    return {
        str(path.relative_to(dataset)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(dataset.rglob("*"))
        if path.is_file()
    }


def rows(dataset: Path, folder: str = "data") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path in sorted((dataset / folder).glob("*.parquet")):
        found += pq.read_table(path).to_pylist()
    return found


def built(config: Path, *arguments: str, expect: int = 0, timeout: float = 200) -> str:
    done = mbeir_cot("build", config, "--quiet", *arguments, timeout=timeout)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def count_queries(root: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in (root / "query" / "train").glob("*.jsonl"))
