"""Which requests use the shell's proxy, with a local proxy."""

from __future__ import annotations

import http.server
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from pipeline.serving.proxy_bypass import health
from pipeline.serving.registry import registered, running
from pipeline.teacher.client import TeacherClient
from pipeline.teacher.request_body import TeacherRequest
from schemas.hosting import Endpoint, ServerConfig
from schemas.teacher import Outcome, Transport
from schemas.teacher_config import TeacherConfig
from tests.pipeline.serving.test_server import config, started  # noqa: F401 (fixtures)
from tests.pipeline.teacher import fault_server

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
REQUEST = TeacherRequest("k", [{"role": "user", "content": "1"}])


class Proxy(http.server.BaseHTTPRequestHandler):
    """A proxy that forwards requests and records their addresses."""

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
    """The addresses requested through the proxy, which the shell names for everything."""
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


def test_requests_to_managed_servers_bypass_the_proxy(
    proxy: list[str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("MBEIR_COT_CACHE", str(tmp_path))
    server = request.getfixturevalue("started")  # waits until it is healthy
    with registered(server.config, server.endpoint, server.pid):
        assert running(server.config) == server.endpoint
    url = server.endpoint.url.replace("/v1", "/health")
    assert health(url) is None
    assert proxy == []
    with pytest.raises(urllib.error.HTTPError, match="403"):  # as before the change
        urllib.request.build_opener().open(url)
    assert proxy == [url]


@pytest.mark.parametrize("trust", [False, True])
async def test_requests_to_an_endpoint_use_the_proxy_on_demand(proxy: list[str], trust: bool) -> None:
    async with fault_server.running() as server:
        endpoint = Endpoint(url=server.url, model="m")
        async with TeacherClient(Transport(trust_env=trust).client((endpoint,))) as client:
            answer = await client.ask(REQUEST)
    assert answer.outcome is Outcome.OK
    assert proxy == ([f"{server.url}/chat/completions"] if trust else [])


def test_the_proxy_setting_is_refused_for_managed_servers() -> None:
    with pytest.raises(ValueError, match="managed servers are reached without a proxy"):
        TeacherConfig(server=ServerConfig(model="m"), transport=Transport(trust_env=True))
