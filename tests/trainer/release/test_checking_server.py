"""Servers that refuse to check an export, or do not answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.release import checking_server
from trainer.release.checking_server import CheckError


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
    monkeypatch.setattr(checking_server, "_TIMEOUT_S", 0.2)
    with answering(answer) as server, pytest.raises(CheckError, match=said) as caught:
        checking_server.ask(server, "/embeddings", {})
    assert "s.log" in caught.value.remedy
