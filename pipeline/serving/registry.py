"""Running servers: `mbeir-cot serve` registers its server, and other commands may use it (`reuse`).

An entry is named by the digest of the settings, so only a server with the same settings is found, and only while its process
lives and it answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ValidationError

from pipeline.mbeir.cache import default_cache_dir
from pipeline.serving.proxy_bypass import health
from schemas.hosting import Endpoint, ServerConfig


class _Entry(BaseModel):
    endpoint: Endpoint
    supervisor: int


def _path(config: ServerConfig) -> Path:
    digest = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:24]
    return default_cache_dir() / "servers" / f"{digest}.json"


@contextmanager
def registered(config: ServerConfig, endpoint: Endpoint, supervisor: int) -> Iterator[None]:
    """Registers a server while the context lasts."""
    path = _path(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{supervisor}.tmp")
    temporary.write_text(_Entry(endpoint=endpoint, supervisor=supervisor).model_dump_json(), encoding="utf-8")
    temporary.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def running(config: ServerConfig) -> Endpoint | None:
    """The endpoint of a healthy server with these settings, if one is registered."""
    path = _path(config)
    try:
        entry = _Entry.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    if Path("/proc").is_dir() and not Path(f"/proc/{entry.supervisor}").is_dir():
        path.unlink(missing_ok=True)  # its process died without removing the entry
        return None
    return entry.endpoint if health(entry.endpoint.url.removesuffix("/v1") + "/health") is None else None
