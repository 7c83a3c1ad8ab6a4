"""What tests of the build share: an oracle teacher in a process of its own, configs for it, datasets compared."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow.parquet as pq
import yaml

from tests.support.cli import mbeir_cot

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "pocket" / "checkpoints" / "teacher"


class Oracle:
    """The stand-in teacher of `bench.oracle_server`."""

    def __init__(
        self,
        log: Path,
        *,
        delay: float = 0.0,
        garbage: str = "",
        bodies: Path | None = None,
        refuse: str = "",
        kind: str = "oracle",
        root: str = "",
    ) -> None:
        """`kind`: one of `bench.oracle_server.KINDS`."""
        self.kind, self.root = kind, root
        self.log, self.delay, self.garbage, self.bodies, self.refuse = log, delay, garbage, bodies, refuse
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "bench.oracle_server", str(self.port), "--log", str(self.log)]
        command += ["--delay", str(self.delay), "--garbage", self.garbage, "--refuse", self.refuse]
        command += ["--kind", self.kind, "--root", self.root]
        command += ["--bodies", str(self.bodies)] if self.bodies is not None else []
        self.process = subprocess.Popen(command, cwd=ROOT)
        for _ in range(200):
            try:
                urllib.request.urlopen(f"{self.url}/models", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def answered(self) -> Counter[str]:
        """How often each request was answered."""
        return Counter(self.log.read_text().split()) if self.log.exists() else Counter()

    def config(self, directory: Path, mbeir: Path, **changes: Any) -> Path:
        """A config file that asks this teacher; `changes` are ``section__key=value``."""
        settings: dict[str, Any] = {
            "mbeir": str(mbeir),
            "out": str(directory / "out"),
            "input": {"cache": str(directory / "cache")},
            "teacher": {
                "hosting": "external",
                "endpoints": [{"url": self.url, "model": "oracle"}],
                "prompts": "pocket",
                "max_facet_chars": 240,
                "max_answer_chars": 200,
                "transport": {"start_in_flight": 8, "max_in_flight": 8, "backoff_s": 0.05, "backoff_cap_s": 0.5},
            },
            "screen": {"reasoning_tokens": [4, 256], "answer_tokens": [2, 128], "tokenizer": str(TOKENIZER)},
        }
        for name, value in changes.items():
            *sections, last = name.split("__")
            place = settings
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
        path = directory / "build.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """The real command in the background, in a session of its own."""
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
    """A test that fails leaves no build behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def kill(process: subprocess.Popen[Any]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def digests(dataset: Path) -> dict[str, str]:
    """Path below the dataset -> SHA-256, of every file."""
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
