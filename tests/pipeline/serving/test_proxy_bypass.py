"""Health of a port where something else than an HTTP server answers."""

from __future__ import annotations

import socket
import threading

import pytest

from pipeline.serving.proxy_bypass import health


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200, b""])
def test_what_is_no_http_server_is_not_healthy(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert health(f"http://127.0.0.1:{server.getsockname()[1]}/health", timeout=5)
        thread.join()
