"""Settings of the teacher's client, and its answers."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from schemas.hosting import Endpoint


class Transport(BaseModel):
    """How the client treats its endpoints. Every field says why one would change it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    start_in_flight: PositiveInt = 16
    """Requests in flight to an endpoint at first; the limit then finds its own size."""
    min_in_flight: PositiveInt = 1
    max_in_flight: PositiveInt = 512
    """The limit grows no further than this."""
    try_timeout_s: PositiveFloat = 300
    """One attempt, from sending to the last byte: longer than the longest answer takes on a full server."""
    deadline_s: PositiveFloat = 3600
    """One request with all its attempts and waiting, also for a server that is being restarted."""
    max_attempts: PositiveInt = 8
    backoff_s: PositiveFloat = 0.5
    """The first wait before another attempt is up to this; it doubles each time."""
    backoff_cap_s: PositiveFloat = 30
    trust_env: bool = False
    """Ask through the proxy that `http_proxy`, `https_proxy` and `no_proxy` name, for endpoints that are reached in no other
    way. Never for servers of ours."""
    load_poll_s: NonNegativeFloat = 0
    """Seconds after which a vLLM server's metrics are read again, so that no more is sent than its KV cache holds; 0: never."""
    window: PositiveInt = 200
    """Last answers over which the share of failures is taken, for stopping a run early."""

    def client(self, endpoints: tuple[Endpoint, ...]) -> ClientConfig:
        return ClientConfig(endpoints=endpoints, **self.model_dump())


class ClientConfig(Transport):
    """The client's settings together with the servers it asks."""

    endpoints: Annotated[tuple[Endpoint, ...], Field(min_length=1)]
    """Servers of the same model; each request goes to the one with the most room."""


class Outcome(StrEnum):
    """What became of a request. Only `ok` carries a usable text."""

    OK = "ok"
    INVALID_FINISH = "invalid_finish"
    """The server stopped for another reason than the end of the answer: it is cut off, not shorter."""
    MALFORMED_COMPLETION = "malformed_completion"
    """HTTP 200 with a body that is no chat completion."""
    PERMANENT_HTTP = "permanent_http"
    """A 4xx that asking again would not change."""
    EXHAUSTED_RETRIES = "exhausted_retries"
    DEADLINE = "deadline"
    LOST_WITH_SERVER = "lost_with_server"
    """In flight when its server died: maybe the cause, so it is asked again alone."""
    KILLS_SERVER = "kills_server"
    """The server died of it again when it was asked alone."""


class TeacherAnswer(BaseModel):
    """The answer to one request, also if it failed. Data, not an exception."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    outcome: Outcome
    detail: str = ""
    """Why it is no usable text; of a usable one, what stood beside it (thoughts)."""
    text: str = ""
    finish_reason: str | None = None
    first_token_logprobs: dict[str, float] = Field(default_factory=dict)
    prompt_tokens: NonNegativeInt = 0
    completion_tokens: NonNegativeInt = 0
    latency_s: float = 0.0
    """Of the last attempt."""
    total_s: float = 0.0
    """From asking to the answer, with waiting and earlier attempts."""
    attempts: NonNegativeInt = 0
    model: str = ""
    fingerprint: str | None = None
    """What the server says of its build, if it does."""
    endpoint: str = ""

    @property
    def ok(self) -> bool:
        return self.outcome is Outcome.OK

    @property
    def is_owed(self) -> bool:
        """Nothing was said of the question itself (the server did not answer): a later run asks again."""
        return self.outcome in (Outcome.EXHAUSTED_RETRIES, Outcome.DEADLINE, Outcome.LOST_WITH_SERVER)
