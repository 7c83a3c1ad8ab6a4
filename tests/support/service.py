"""The embedding service in its own process, as users start it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai

KEY = "sk-service-test-0123456789"


class Service:
    def __init__(self, process: subprocess.Popen[str], url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log
        self.root = url.removesuffix("/v1")

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=KEY, max_retries=0, timeout=120)

    def metrics(self) -> dict[str, float]:
        lines = httpx.get(f"{self.root}/metrics").text.splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}

    def wait_for(self, name: str, least: float) -> None:
        until = time.monotonic() + 300  # an engine starts in 6 s on an idle machine, in minutes on a busy one
        while self.metrics().get(name, 0) < least:
            assert time.monotonic() < until, f"{name} never reached {least}"
            time.sleep(0.02)

    def engine(self) -> int:
        return int(re.findall(r"engine (\d+)$", self.log.read_text(), re.MULTILINE)[-1])


@contextlib.contextmanager
def started(run: Path, directory: Path, *options: str) -> Iterator[Service]:
    log = directory / "service.log"
    command = [
        sys.executable,
        "-m",
        "mbeir_cot",
        "serve-embeddings",
        str(run),
        "--port",
        "0",
        "--name",
        "trace",
        "--log",
        str(log),
    ]
    environment = os.environ | {"SERVICE_KEY": KEY, "COLUMNS": "200"}
    process = subprocess.Popen(
        [*command, "--api-key-env", "SERVICE_KEY", "--set", "device=cpu", *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", env=environment,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said: list[str] = []
        for line in process.stdout:  # warnings of other libraries may come first
            said.append(line)
            if "is served at" in line:
                break
        ready = re.search(r"http://\S+/v1", said[-1] if said else "")
        assert ready is not None, "".join(said)
        yield Service(process, ready[0], log)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
