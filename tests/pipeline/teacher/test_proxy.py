"""What goes through the shell's proxy and what does not, with a proxy on this machine."""

from __future__ import annotations

import http.server
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from pipeline.serving.direct import health
from pipeline.serving.registry import registered, running
from pipeline.teacher.client import TeacherClient
from pipeline.teacher.request import TeacherRequest
from schemas.config import TeacherConfig
from schemas.hosting import Endpoint, ServerConfig
from schemas.teacher import Outcome, Transport
from tests.pipeline.serving.test_server import config, started  # noqa: F401 (fixtures)
from tests.pipeline.teacher import fault_server

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
REQUEST = TeacherRequest("k", [{"role": "user", "content": "1"}])


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes requests on, and keeps where they went."""

    seen: list[str]

    def do_POST(self) -> None:
        self.seen.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = urllib.request.Request(self.path, body, {"Content-Type": "application/json"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            content = answer.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.seen.append(self.path)
        self.send_error(403, "this host is not for you")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base's name)
        pass


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The addresses that it was asked for; the shell names it for everything."""
    handler = type("Handler", (Proxy,), {"seen": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    yield handler.seen
    server.shutdown()
    server.server_close()


def test_our_own_servers_are_asked_past_it(
    proxy: list[str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("MBEIR_COT_CACHE", str(tmp_path))
    server = request.getfixturevalue("started")  # waits for its health
    with registered(server.config, server.endpoint, server.pid):
        assert running(server.config) == server.endpoint
    url = server.endpoint.url.replace("/v1", "/health")
    assert health(url) is None
    assert proxy == []
    with pytest.raises(urllib.error.HTTPError, match="403"):  # as it went before
        urllib.request.build_opener().open(url)
    assert proxy == [url]


@pytest.mark.parametrize("trust", [False, True])
async def test_an_endpoint_is_asked_through_it_when_told(proxy: list[str], trust: bool) -> None:
    async with fault_server.running() as server:
        endpoint = Endpoint(url=server.url, model="m")
        async with TeacherClient(Transport(trust_env=trust).client((endpoint,))) as client:
            answer = await client.ask(REQUEST)
    assert answer.outcome is Outcome.OK
    assert proxy == ([f"{server.url}/chat/completions"] if trust else [])


def test_it_is_not_for_servers_of_ours() -> None:
    with pytest.raises(ValueError, match="past all proxies"):
        TeacherConfig(server=ServerConfig(model="m"), transport=Transport(trust_env=True))
