"""The oracle, a fake teacher, as a process: for benchmarks and for tests of builds."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

ROOT = Path(__file__).parents[1]
TOKENIZER = ROOT / "pocket" / "checkpoints" / "teacher"


class Oracle:
    """A process that runs `bench.oracle_server`."""

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
        key: str = "",
    ) -> None:
        """`kind`: one of `bench.oracle_server.KINDS`."""
        self.limit = log.with_suffix(".limit")
        self.kind, self.root, self.key = kind, root, key
        self.log, self.delay, self.garbage, self.bodies, self.refuse = log, delay, garbage, bodies, refuse
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "bench.oracle_server", str(self.port), "--log", str(self.log)]
        command += ["--delay", str(self.delay), "--garbage", self.garbage, "--refuse", self.refuse]
        command += ["--kind", self.kind, "--root", self.root, "--key", self.key, "--limit", str(self.limit)]
        command += ["--bodies", str(self.bodies)] if self.bodies is not None else []
        self.process = subprocess.Popen(command, cwd=ROOT)
        for _ in range(200):
            try:
                urllib.request.urlopen(f"{self.url}/models", timeout=1)
                break
            except urllib.error.HTTPError:  # it answers, but wants a key
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
        """Counts how often each request was answered."""
        return Counter(self.log.read_text(encoding="utf-8").split()) if self.log.exists() else Counter()

    def answer_at_most(self, requests: int | None) -> None:
        """Lets requests wait once so many have been answered in all, until told otherwise; None: no limit."""
        new = self.limit.with_suffix(".new")
        new.write_text("" if requests is None else str(requests), encoding="utf-8")
        new.replace(self.limit)

    def config(self, directory: Path, mbeir: Path, **changes: Any) -> Path:
        """Writes a config file with this teacher; `changes` are ``section__key=value``."""
        settings: dict[str, Any] = {
            "mbeir": str(mbeir),
            "out": str(directory / "out"),
            "input": {"candidate_cache": str(directory / "cache")},
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
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return path
