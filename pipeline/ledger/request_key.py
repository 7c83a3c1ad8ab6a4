"""What makes two requests the same: the key of the ledger.

In the key                                              Not in the key
------------------------------------------------------  ------------------------------------------------------------
this table's version                                    where the request goes: URL, key, endpoint, machine
model and revision (of a local directory: its digest)   how it gets there: time-outs, retries, requests in flight
the pixel budgets of server and client                  whether images travel by path or in the request
the rendered messages, every character                  which template or prompt set rendered them
the SHA-256 of each image's file, in its place          the images' paths and the M-BEIR root
all sampling fields (pipeline/traces/sampling.py)       the query's id, dataset and split
all other fields as sent (extra_body)                   fields that the dialect does not send
the output grammar or the labels of a choice            what is done with the answer: thresholds, screens, routing
the number of the attempt                               dtype, parallelism and memory settings of the server

So a moved data directory, another machine or another threshold sends no request again, and a changed prompt only those that
use it. Two queries with the same request share one answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from prompts import ImageSlot, Prompt
from schemas.errors import ConfigError
from schemas.teacher_config import TeacherConfig

FINGERPRINT_VERSION: Final = 2
FINGERPRINT_BYTES: Final = 16
_SAMPLE_BYTES: Final = 1 << 20


class Identity:
    """The model that answers, as far as it determines the answers. Compute it once: it reads a local model's files."""

    def __init__(self, config: TeacherConfig) -> None:
        server = config.server if config.hosting == "managed" else None
        if server is not None:
            directory = Path(server.model)
            local = directory.is_dir()
            self.name = server.served_name if local else server.model
            self.revision = _directory_digest(directory) if local else server.revision or "unpinned"
            budget = [server.min_pixels, server.max_pixels]
            known_as = "" if local else server.model  # a directory is identified by its content, not its path
        else:
            names = sorted({endpoint.model for endpoint in config.endpoints})
            revisions = sorted({endpoint.revision or "as served" for endpoint in config.endpoints})
            if len(names) > 1:
                raise ConfigError(
                    f"the endpoints serve different models ({', '.join(names)})",
                    "list endpoints of one model; they share the work",
                )
            self.name = known_as = names[0]
            if len(revisions) > 1:
                raise ConfigError(
                    f"the endpoints have different revisions ({', '.join(revisions)})",
                    "give all the same `revision`, or list those of one model only",
                )
            self.revision, budget = revisions[0], []
        self.prefix = orjson.dumps([FINGERPRINT_VERSION, known_as, self.revision, budget, config.max_pixels])


def fingerprint(
    identity: Identity, prompt: Prompt, digests: Mapping[str, str], fields: Mapping[str, Any], attempt: int
) -> bytes:
    """16 bytes. `digests` holds the SHA-256 of the image of each role that the prompt shows."""
    parts = [{"image": digests[part.role]} if isinstance(part, ImageSlot) else part for part in prompt]
    asked = orjson.dumps([parts, fields, attempt], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(identity.prefix + asked).digest()[:FINGERPRINT_BYTES]


def _directory_digest(directory: Path) -> str:
    """Of names, sizes, and the first and last mebibyte of every file, which differ between checkpoints; 150 GB need not be
    read."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.suffix in {".safetensors", ".json", ".jinja", ".bin", ".txt", ".model"}:
            size = path.stat().st_size
            digest.update(f"{path.relative_to(directory)}\0{size}\0".encode())
            with path.open("rb") as file:
                digest.update(file.read(_SAMPLE_BYTES))
                if size > _SAMPLE_BYTES:
                    file.seek(max(_SAMPLE_BYTES, size - _SAMPLE_BYTES))
                    digest.update(file.read())
    return digest.hexdigest()[:16]
