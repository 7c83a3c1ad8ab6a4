"""A served embedder, with the methods of `TraceEmbedder`: the vectors come from `mbeir-cot serve-embeddings`.

embedder = RemoteEmbedder("http://127.0.0.1:8100/v1")
one, = embedder.embed_queries(["a town in the north"])
"""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from schemas.errors import ConfigError, CotError, InputError
from schemas.service import ROUTES
from schemas.training import RouteChoice
from trainer.embedding.query_embedding import QueryEmbedding
from trainer.embedding.trace_embedder import DEFAULT_INSTRUCTION, QueryContent, TextOrImage, one_each

_PART: Final = 64
"""Inputs of a request."""
_TRIES: Final = 6


class ServiceError(CotError):
    """The service cannot be reached, or does not answer as it should."""


class RemoteEmbedder:
    """Asks a service, and asks again when it is busy."""

    def __init__(self, url: str, *, api_key_env: str | None = None, timeout_s: float = 120.0) -> None:
        """url: with its /v1. api_key_env: the environment variable that holds the key.

        Raises ServiceError if no embedding service answers there.
        """
        self._url = url.rstrip("/")
        key = os.environ.get(api_key_env, "").strip() if api_key_env else ""
        if api_key_env and not key:
            raise InputError(f"the environment variable {api_key_env} is not set", "set it to the key of the service")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # past proxies: an embedding service is one's own
        self._client = httpx.Client(headers=headers, timeout=timeout_s, trust_env=False)
        model = self._ask("GET", "/models")["data"][0]
        if "sha256" not in model:
            raise ServiceError(f"{self._url} serves no TRACE embedder", "start one with `mbeir-cot serve-embeddings RUN`")
        self.name, self.dim = str(model["id"]), int(model["dim"])
        self.sha256: str | None = model["sha256"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.close()

    def embed_queries(
        self,
        queries: Sequence[QueryContent],
        *,
        instruction: str | Sequence[str] = DEFAULT_INSTRUCTION,
        route: RouteChoice = "learned",
    ) -> list[QueryEmbedding]:
        """As `TraceEmbedder.embed_queries`. `seconds` includes the way to the service and back."""
        instructions = one_each(instruction, len(queries))
        names = [name for name, own in ROUTES.items() if own == route]
        if not names:
            raise ConfigError(f"route {route}: unknown", "learned, always-direct or always-reason")
        embeddings = []
        for start in range(0, len(queries), _PART):
            part = slice(start, start + _PART)
            fields = {"instruction": instructions[part], "route": names[0]}
            began = time.perf_counter()
            for row, vector in self._embed(queries[part], fields):
                embeddings.append(
                    QueryEmbedding(
                        torch.from_numpy(vector),
                        row["route"] == "reasoning",
                        row["trace_ended"],
                        row["trace"] or "",
                        1.0 - row["p_reasoning"],
                        row["trace_tokens"],
                        time.perf_counter() - began,
                        confidence=row["trace_confidence"],
                        fell_back=row["fell_back"],
                    )
                )
        return embeddings

    def embed_candidates(self, candidates: Sequence[TextOrImage]) -> NDArray[np.float32]:
        """As `TraceEmbedder.embed_candidates`."""
        vectors_CD = np.zeros((len(candidates), self.dim), np.float32)
        for start in range(0, len(candidates), _PART):
            rows = self._embed(candidates[start : start + _PART], {"input_type": "candidate"})
            vectors_CD[start : start + _PART] = np.stack([vector for _, vector in rows])
        return vectors_CD

    def _embed(
        self, contents: Sequence[QueryContent], fields: dict[str, Any]
    ) -> Iterator[tuple[dict[str, Any], NDArray[np.float32]]]:
        messages = [[{"role": "user", "content": list(_parts(content))}] for content in contents]
        answer = self._ask("POST", "/embeddings", {"messages": messages, "encoding_format": "base64", **fields})
        for row in answer["data"]:
            yield row, np.frombuffer(base64.b64decode(row["embedding"]), "<f4").astype(np.float32)

    def _ask(self, method: str, path: str, fields: dict[str, Any] | None = None) -> Any:
        for left in reversed(range(_TRIES)):
            try:
                answer = self._client.request(method, self._url + path, json=fields)
                if answer.status_code == 200:
                    return answer.json()
                problem = _problem(answer)
                wait_s = float(answer.headers.get("Retry-After", 0))
                again = answer.status_code in (429, 503)
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                raise ServiceError(
                    f"{self._url}{path}: {error or type(error).__name__}", "check the URL and the service"
                ) from error
            if not again or not left:
                raise ServiceError(f"{self._url}{path}: {problem}", "" if again else "check the request, the URL and the key")
            time.sleep(min(max(wait_s, 0.5), 30.0))
        raise AssertionError("the last try has raised")


def _problem(answer: httpx.Response) -> str:
    try:
        return f"HTTP {answer.status_code}: {answer.json()['error']['message']}"
    except (ValueError, LookupError, TypeError):
        return f"HTTP {answer.status_code}"


def _parts(content: QueryContent) -> Iterator[dict[str, Any]]:
    """A query or candidate as content parts."""
    pieces = content if isinstance(content, list | tuple) else [content]
    for at, piece in enumerate(pieces):
        if piece is None:
            continue
        if isinstance(piece, str) and not (isinstance(content, tuple) and at == 1):
            yield {"type": "text", "text": piece}
        else:
            yield {"type": "image_url", "image_url": {"url": _data_url(piece)}}


def _data_url(picture: Image.Image | Path | str) -> str:
    if isinstance(picture, Image.Image):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        content = buffer.getvalue()
    else:
        try:
            content = Path(picture).read_bytes()
        except OSError as error:
            raise InputError(f"image {str(picture)!r}: {error.strerror}", "check the path") from error
    return "data:image/*;base64," + base64.b64encode(content).decode()
