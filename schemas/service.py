"""Settings of the embedding service, and the routes that its clients name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from schemas.training import RouteChoice

ServiceRoute = Literal["learned", "never", "always"]
InputType = Literal["query", "candidate", "document"]
"""`document` is what other services call a candidate."""

ROUTES: Final[dict[ServiceRoute, RouteChoice]] = {
    "learned": "learned",
    "never": "always-direct",
    "always": "always-reason",
}


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ServiceLimits(_Settings):
    """What one request may hold, and what all accepted requests may hold together."""

    inputs: PositiveInt = 1_024
    """Inputs of a request."""
    images: PositiveInt = 4
    """Images of an input."""
    pixels: PositiveInt = 16_000_000
    """Width x height of an image; checked before it is decoded."""
    image_mib: PositiveFloat = 16.0
    """Of an image's file."""
    body_mib: PositiveFloat = 32.0
    """Of a request."""
    chars: PositiveInt = 32_768
    """Characters of an input's texts, or of an instruction."""
    waiting: PositiveInt = 2_048
    """Inputs that are accepted and not answered. More are refused with 429."""
    waiting_mib: PositiveFloat = 1_024.0
    """Bodies and decoded images of all accepted requests."""


class ServiceSettings(_Settings):
    """How embeddings are served."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8_100
    """0: any free one; it is printed."""
    name: str
    """The model's name in requests and answers."""
    api_key_env: str | None = None
    """The environment variable that holds the key which clients send as a bearer token."""
    media_roots: tuple[Path, ...] = ()
    """Directories whose images a request may name as file:///…; without one no file is opened."""
    remote_hosts: tuple[str, ...] = ()
    """Hosts from which images are fetched over http(s); without one nothing is fetched."""
    batch_size: PositiveInt = 32
    """Inputs that the engine embeds together; with vLLM `adaptive.decode_rows` says how many."""
    batch_wait_ms: NonNegativeFloat = 2.0
    """How long an idle engine waits for more inputs before it starts a batch that is not full; vLLM does not wait."""
    timeout_s: PositiveFloat = 60.0
    """After that an accepted request is answered with 504."""
    drain_s: PositiveFloat = 30.0
    """After SIGTERM, how long accepted requests may go on; what is left then is answered with 503."""
    engine_patience_s: PositiveFloat = 600.0
    """A batch (with vLLM: an input) that takes longer ends the engine, which is started again."""
    limits: ServiceLimits = ServiceLimits()
