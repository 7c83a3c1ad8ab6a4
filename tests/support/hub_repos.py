"""A Hub in memory: the part of its HTTP protocol that creating, filling, listing and downloading repositories needs.

Its state has the Hub's form: objects by SHA-256 (LFS), commits as complete trees, branches as names of commits.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_thisIsTheTestTokenOfTheLocalHub"
LFS_SUFFIXES = (".parquet", ".safetensors", ".jpg")


@dataclass
class Repo:
    private: bool
    branches: dict[str, str]
    trees: dict[str, dict[str, bytes]]
    messages: list[str] = field(default_factory=list)

    def tree(self, revision: str) -> dict[str, bytes] | None:
        return self.trees.get(self.branches.get(revision, revision))

    def commit(self, branch: str, tree: dict[str, bytes], message: str) -> str:
        oid = hashlib.sha1(f"{len(self.trees)}{sorted(tree)}{message}".encode()).hexdigest()
        self.trees[oid], self.branches[branch] = tree, oid
        self.messages.append(message)
        return oid


class HubRepos(ThreadingHTTPServer):
    """The server. `fail` is called with (method, path); a status that it returns is sent instead, and 0 breaks the connection."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        """Starts again with nothing."""
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.uploaded: list[str] = []
        self.requests: list[str] = []
        self.authorizations: set[str] = set()
        self.fail: Any = lambda method, path: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self, kind: str, repo: str, revision: str = "main") -> dict[str, bytes]:
        return self.repos[kind, repo].tree(revision) or {}


def lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: HubRepos
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def _handle(self) -> None:
        hub, parts = self.server, urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with hub.lock:
            hub.requests.append(f"{self.command} {path}")
            hub.authorizations.add(self.headers.get("Authorization", ""))
            status = hub.fail(self.command, path)
            if status == 0:
                self.close_connection = True
                self.connection.close()
                return
            if status is not None:
                self._json(status, {"error": "as the test wants it"})
                return
            writes = self.command in ("POST", "PUT") and "/paths-info/" not in path and not path.startswith("/objects/")
            if writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._json(401, {"error": "Invalid username or password."})
                return
            self._route(path, query, body)

    def _route(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        hub = self.server
        if path == "/api/whoami-v2":
            self._json(200, {"type": "user", "name": "org", "orgs": [], "auth": {"type": "access_token"}})
        elif path == "/api/validate-yaml":
            self._json(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/objects/([0-9a-f]{64})", path):
            hub.objects[match[1]] = body
            hub.uploaded.append(match[1])
            self._json(200, {})
        elif match := re.fullmatch(r"(?:/(datasets))?/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._batch(json.loads(body))
        elif match := re.fullmatch(r"/api/(dataset|model)s/([^/]+/[^/]+)(?:/([a-z-]+)(?:/(.+))?)?", path):
            self._api(match[1], match[2], match[3], match[4], query, body)
        elif match := re.fullmatch(r"(?:/(datasets))?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve("dataset" if match[1] else "model", match[2], match[3], match[4])
        else:
            self._json(404, {"error": f"nothing at {path}"})

    def _create(self, wanted: dict[str, Any]) -> None:
        kind = wanted.get("type", "model")
        name = f"{wanted.get('organization') or 'org'}/{wanted['name']}"
        known = (kind, name) in self.server.repos
        if not known:
            repo = Repo(bool(wanted.get("private") or wanted.get("visibility") == "private"), {}, {})
            repo.commit("main", {".gitattributes": b"*.parquet filter=lfs\n"}, "initial commit")
            self.server.repos[kind, name] = repo
        url = f"{self.server.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        self._json(409 if known else 200, {"url": url, "name": name, "id": name})

    def _batch(self, wanted: dict[str, Any]) -> None:
        answers = []
        for one in wanted["objects"]:
            answer: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.server.objects:
                answer["actions"] = {"upload": {"href": f"{self.server.url}/objects/{one['oid']}", "header": {}}}
            answers.append(answer)
        self._json(200, {"transfer": "basic", "objects": answers}, kind="application/vnd.git-lfs+json")

    def _api(
        self, kind: str, name: str, action: str | None, rest: str | None, query: dict[str, list[str]], body: bytes
    ) -> None:
        repo = self.server.repos.get((kind, name))
        if repo is None:
            self._json(404, {"error": "Repository not found"}, headers={"X-Error-Code": "RepoNotFound"})
            return
        revision, _, below = (rest or "main").partition("/")
        if action == "branch":
            repo.branches.setdefault(revision, repo.branches["main"])
            self._json(200, {})
            return
        if action == "preupload":
            files = json.loads(body)["files"]
            answer = [
                {"path": f["path"], "uploadMode": "lfs" if lfs(f["path"]) else "regular", "shouldIgnore": False, "oid": None}
                for f in files
            ]
            self._json(200, {"files": answer})
            return
        if action == "commit":
            self._commit(repo, kind, name, revision, body)
            return
        tree = repo.tree(revision)
        if tree is None:
            self._json(404, {"error": "Revision not found"}, headers={"X-Error-Code": "RevisionNotFound"})
            return
        sha = repo.branches.get(revision, revision)
        if action in (None, "revision"):
            siblings = [{"rfilename": path, "size": len(data)} for path, data in sorted(tree.items())]
            self._json(200, {"id": name, "sha": sha, "private": repo.private, "siblings": siblings, "tags": [], "downloads": 0})
        elif action == "tree":
            self._json(200, _listing(tree, below, recursive=query.get("recursive", ["false"])[0].lower() in ("1", "true")))
        elif action == "paths-info":
            form = parse_qs(body.decode()) if b"paths=" in body else json.loads(body or b"{}")
            wanted = set(form.get("paths", []))
            self._json(200, [_entry(path, data) for path, data in sorted(tree.items()) if path in wanted])
        elif action == "refs":
            self._json(
                200,
                {
                    "branches": [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": s} for b, s in repo.branches.items()],
                    "tags": [],
                    "converts": [],
                },
            )
        else:
            self._json(404, {"error": f"no {action}"})

    def _commit(self, repo: Repo, kind: str, name: str, revision: str, body: bytes) -> None:
        tree, message = dict(repo.tree(revision) or {}), ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    self._json(400, {"error": f"object {value['oid']} was never uploaded"})
                    return
                tree[value["path"]] = self.server.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del tree[value["path"]]
        oid = repo.commit(revision, tree, message)
        url = f"{self.server.url}/{'datasets/' if kind == 'dataset' else ''}{name}/commit/{oid}"
        self._json(200, {"commitUrl": url, "commitOid": oid, "pullRequestUrl": None})

    def _resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        repo = self.server.repos.get((kind, name))
        tree = repo.tree(revision) if repo is not None else None
        if repo is None or tree is None or path not in tree:
            code = "RepoNotFound" if repo is None else "EntryNotFound"
            self._json(404, {"error": code}, headers={"X-Error-Code": code})
            return
        data = tree[path]
        etag = hashlib.sha256(data).hexdigest() if lfs(path) else blob(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": repo.branches.get(revision, revision), "Accept-Ranges": "bytes"}
        status, first, last = 200, 0, len(data) - 1
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or last), last)
            status = 206
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._answer(status, data[first : last + 1], "application/octet-stream", headers)

    def _json(self, status: int, value: Any, *, kind: str = "application/json", headers: dict[str, str] | None = None) -> None:
        self._answer(status, json.dumps(value).encode(), kind, headers or {})

    def _answer(self, status: int, data: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": kind, **headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _entry(path: str, data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob(data)}
    if lfs(path):
        found["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return found


def _listing(tree: dict[str, bytes], below: str, *, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{below}/" if below else ""
    found: list[dict[str, Any]] = []
    folders: set[str] = set()
    for path, data in sorted(tree.items()):
        if not path.startswith(prefix):
            continue
        rest = path.removeprefix(prefix)
        steps = rest.split("/")
        for depth in range(1, len(steps)):
            folder = prefix + "/".join(steps[:depth])
            if folder not in folders and (recursive or depth == 1):
                folders.add(folder)
                found.append({"type": "directory", "path": folder, "size": 0, "oid": blob(folder.encode())})
        if recursive or len(steps) == 1:
            found.append(_entry(path, data))
    return found


@contextmanager
def hub_repos() -> Iterator[HubRepos]:
    server = HubRepos()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
