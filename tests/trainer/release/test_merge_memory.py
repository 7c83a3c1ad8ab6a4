"""The check of an export: the memory of its servers, servers that do not answer, and the routes that may differ."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.serving.vllm_command import arguments
from schemas.errors import ConfigError
from trainer.data.encoding import EncodedSequence
from trainer.release import merge
from trainer.release.merge import CheckError, Sample, ServerPlan, server_config, sort_disagreements

ON_GPU = ServerPlan(torch.device("cuda:0"), "bfloat16", 8192, "")


@pytest.mark.parametrize(("free", "share"), [(79, 0.92), (62, 0.76), (40, 0.48)])
def test_servers_ask_for_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch, free: int, share: float) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free << 30, 79 << 30))
    command = arguments(server_config(ON_GPU, Path("export")), 8000)
    assert command[command.index("--gpu-memory-utilization") + 1] == str(share)


def test_a_full_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 79 << 30))
    with pytest.raises(ConfigError, match=r"1\.0 of 79\.0 GiB"):
        server_config(ON_GPU, Path("export"))


def test_only_routes_that_rounding_decides_may_differ() -> None:
    vector = np.zeros(2, np.float32)
    samples = [Sample(EncodedSequence(f"q{p}", (), ()), True, p > 0.5, vector, p) for p in (0.51, 0.55, 0.6, 0.0, 1.0, 0.5)]
    same = [False, False, False, False, False, True]
    assert sort_disagreements(samples, same, "bfloat16") == (["q0.51", "q0.55"], ["q0.6", "q0.0", "q1.0"])
    assert sort_disagreements(samples, same, "float32")[0] == []


@contextmanager
def answering(answer: Any) -> Iterator[Any]:
    """A server in the place of vLLM's, which `answer` answers for."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer(self)

        def log_message(self, *given: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield SimpleNamespace(endpoint=SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}/v1"), log=Path("s.log"))
    server.shutdown()
    server.server_close()


def refuse(request: BaseHTTPRequestHandler) -> None:
    request.send_response(400)
    request.end_headers()
    request.wfile.write(b"the prompt is too long")


def say_nonsense(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    request.wfile.write(b"<html>")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refuse, "HTTP 400: the prompt is too long"),
        (lambda _: time.sleep(0.3), "does not answer: timed out"),
        (lambda _: None, "does not answer: Remote end closed connection"),
        (say_nonsense, "does not answer: Expecting value"),
    ],
)
def test_a_server_that_gives_no_answer_is_named(monkeypatch: pytest.MonkeyPatch, answer: Any, said: str) -> None:
    monkeypatch.setattr(merge, "_TIMEOUT_S", 0.2)
    with answering(answer) as server, pytest.raises(CheckError, match=said) as caught:
        merge._request(server, "/embeddings", {})
    assert "s.log" in caught.value.remedy
