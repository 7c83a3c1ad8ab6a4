"""Removes local paths, addresses and host names from texts that are published, and finds them in finished datasets.

Server messages quote paths and addresses. `scrubbed` depends only on the text and the config, so that builds are reproducible;
the check of a finished dataset also uses what it knows of this machine.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

from schemas.config import BuildConfig

_URL: Final = re.compile(r"\b(?P<scheme>https?|file|ray|grpc)://[^\s'\"<>)\]}]*")
_PATH: Final = re.compile(r"(?<![\w.:/~…-])~?/(?:[\w.@+%=-]+/)*[\w.@+%=-]+")
_ADDRESS: Final = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?::\d{1,5})?(?![\w.])|\blocalhost:\d{1,5}\b")
_LEAST_PARTS: Final = 2
"""Parts of a path that identifies a machine: /data could be on any."""
_EVERYWHERE: Final = frozenset({"bin", "dev", "etc", "lib", "lib64", "proc", "sbin", "sys", "usr"})
"""Directories that every Linux has."""


class Places:
    """Directories and hosts of a build, which its published texts must not name.

    roots: directories by their absolute paths. hosts: names of machines.
    """

    def __init__(self, roots: Iterable[Path | str] = (), hosts: Iterable[str] = ()) -> None:
        wanted = {text.rstrip("/") for root in roots if (text := str(root)).startswith("/")}
        self._roots = sorted((root for root in wanted if root.count("/") >= 1 and len(root) > 1), key=len, reverse=True)
        names = sorted(map(re.escape, {host for host in hosts if len(host) > 1 and host != "localhost"}), key=len, reverse=True)
        self._hosts = re.compile(rf"(?<![\w.-])(?:{'|'.join(names)})(?::\d{{1,5}})?(?![\w-])") if names else None

    @classmethod
    def of(cls, config: BuildConfig | None, *, here: bool = False) -> Self:
        """`here`: also this machine's home, working and temporary directory, and its name."""
        roots: list[Path | str] = []
        hosts: list[str] = []
        if config is not None:
            roots += [config.mbeir, config.out, *config.input.image_roots, *filter(None, [config.input.candidate_cache])]
            if config.ledger.location:
                roots.append(config.ledger.location)
            for teacher in (config.teacher, config.verifier):
                if teacher is None:
                    continue
                hosts += [urlsplit(endpoint.url).hostname or "" for endpoint in teacher.endpoints]
                if teacher.server is not None:
                    roots += [teacher.server.model, *filter(None, [teacher.server.media_root])]
        if here:
            roots += [Path.home(), Path.cwd(), tempfile.gettempdir(), *(os.path.realpath(root) for root in roots)]
            hosts.append(os.uname().nodename)
        return cls(roots, hosts)

    def scrubbed(self, text: str) -> str:
        """The text without paths, addresses and hosts. A path keeps its last part, which tells what it is about."""
        text = _URL.sub(lambda match: f"{match['scheme']}://…", text)
        for root in self._roots:
            text = re.sub(rf"(?<![\w/]){re.escape(root)}(?P<below>(?:/[\w.@+%=-]+)*)(?![\w.-])", _below, text)
        text = _PATH.sub(_last_part, text)
        text = _ADDRESS.sub("…", text)
        return self._hosts.sub("…", text) if self._hosts is not None else text

    def find(self, text: str) -> str:
        """The first place of this machine that a text names; empty for none.

        A place is one of the roots, or an absolute path that exists here; addresses with a port are places too.
        """
        for match in _PATH.finditer(text):
            path = match[0]
            if any(path == root or path.startswith(f"{root}/") for root in self._roots) or _exists_here(path):
                return path
        named = re.search(r"\bfile://\S+", text) or _ADDRESS.search(text)
        if named is None and self._hosts is not None:
            named = self._hosts.search(text)
        return named[0] if named is not None else ""


def _below(match: re.Match[str]) -> str:
    return f"…/{match['below'].rsplit('/', 1)[1]}" if match["below"] else "…"


def _last_part(match: re.Match[str]) -> str:
    path = match[0]
    return path if path.count("/") < _LEAST_PARTS else f"…/{path.rsplit('/', 1)[1]}"


def _exists_here(path: str) -> bool:
    """Whether the path, or a directory above it that not every machine has, exists here."""
    parts = path.split("/")[1:]
    if path.startswith("~") or parts[0] in _EVERYWHERE:
        return False
    return any(os.path.lexists("/" + "/".join(parts[:length])) for length in range(_LEAST_PARTS, len(parts) + 1))
