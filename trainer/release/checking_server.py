"""Asks the server that checks an export."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any, Final

from pipeline.serving.proxy_bypass import opened
from pipeline.serving.server import ManagedServer
from schemas.errors import CotError

ADVICE: Final = "check that vLLM and transformers agree on the base model and its image processor"
_TIMEOUT_S: Final = 300


class CheckError(CotError):
    """A server that should check an export and does not answer. Nothing is written."""


def ask(server: ManagedServer, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The server's answer. Raises CheckError if it refuses, or does not answer."""
    url = server.endpoint.url + path
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
    try:
        with opened(request, timeout=_TIMEOUT_S) as answer:
            parsed: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        said = error.read(400).decode("utf-8", "replace").strip()
        raise CheckError(
            f"the checking server answers HTTP {error.code}: {said}", f"{ADVICE}; its log is {server.log}"
        ) from error
    except (OSError, HTTPException, ValueError) as error:  # a time-out is an OSError
        cause = getattr(error, "reason", error)
        remedy = f"its log, {server.log}, says why; then run the same command again"
        raise CheckError(f"the checking server does not answer: {cause}", remedy) from error
    return parsed
