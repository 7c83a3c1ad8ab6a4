"""A small server with the part of the Hub's HTTP protocol that downloading a dataset repository needs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


class HubServer(ThreadingHTTPServer):
    """Serves the files below `folder` as dataset repository `repo_id`.

    `cut` maps a file to the number of bytes after which its first download breaks.
    """

    daemon_threads = True

    def __init__(self, folder: Path, repo_id: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.repo_id = folder, repo_id
        self.cut: dict[str, int] = {}
        self.status: int | None = None
        self.downloads: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.authorizations: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def _serve(self, *, body: bool) -> None:
        hub = self.server
        path = unquote(urlsplit(self.path).path)
        hub.authorizations.add(self.headers.get("Authorization", ""))
        if hub.status is not None:
            self._answer(hub.status, b"{}")
        elif re.fullmatch(rf"/api/datasets/{hub.repo_id}(/revision/(main|{COMMIT}))?", path):
            siblings = [{"rfilename": str(file.relative_to(hub.folder))} for file in hub.files()]
            self._answer(200, json.dumps({"id": hub.repo_id, "sha": COMMIT, "siblings": siblings}).encode())
        elif re.fullmatch(rf"/api/datasets/{hub.repo_id}/tree/(main|{COMMIT})", path):
            tree = [
                {"type": "file", "path": str(f.relative_to(hub.folder)), "size": f.stat().st_size, "oid": _etag(f)}
                for f in hub.files()
            ]
            self._answer(200, json.dumps(tree).encode())
        elif match := re.fullmatch(rf"/datasets/{hub.repo_id}/resolve/(main|{COMMIT})/(.+)", path):
            file = hub.folder / match[2]
            if file.is_file():
                self._file(file, match[2], body=body)
            else:
                self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        else:
            self._answer(404, b'{"error": "not found"}', {"X-Error-Code": "RepoNotFound"})

    def _file(self, file: Path, name: str, *, body: bool) -> None:
        hub = self.server
        data = file.read_bytes()
        headers = {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start, status = 0, 200
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(wanted[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            hub.ranges.append(f"{name}@{start}")
        if not body:
            self._answer(status, b"", headers, length=len(data) - start)
            return
        hub.downloads[name] += 1
        cut = hub.cut.pop(name, None)
        if cut is None:
            self._answer(status, data[start:], headers)
            return
        self._answer(status, data[start:cut], headers, length=len(data) - start)
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None, *, length: int | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def serve(folder: Path, repo_id: str) -> Iterator[HubServer]:
    server = HubServer(folder, repo_id)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
