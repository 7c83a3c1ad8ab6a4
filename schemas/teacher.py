"""Settings of the teacher's client, and its answers."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from schemas.hosting import Endpoint


class Transport(BaseModel):
    """How the client treats its endpoints. Every field says why one would change it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    start_in_flight: PositiveInt = 16
    """Requests in flight to an endpoint at first; the limit then finds its own size."""
    min_in_flight: PositiveInt = 1
    max_in_flight: PositiveInt = 512
    """The limit's maximum."""
    try_timeout_s: PositiveFloat = 300
    """Time limit of one attempt, from sending to the last byte. It must exceed the longest answer's time on a busy server."""
    deadline_s: PositiveFloat = 3600
    """Time limit of a request with all attempts and waits, including waits for a server that restarts."""
    max_attempts: PositiveInt = 8
    backoff_s: PositiveFloat = 0.5
    """Longest first wait before another attempt. It doubles each time."""
    backoff_cap_s: PositiveFloat = 30
    trust_env: bool = False
    """Send requests through the proxy in `http_proxy`, `https_proxy` and `no_proxy`, for endpoints that cannot be reached
    otherwise. Never used for managed servers."""
    load_poll_s: NonNegativeFloat = 0
    """Seconds after which a vLLM server's metrics are read again, so that no more is sent than its KV cache holds; 0: never.
    Where we measured it, it saved preemptions and was slower (docs/benchmarks.md)."""
    window: PositiveInt = 200
    """Recent answers over which the share of failures is computed, for stopping a build early."""

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
    """The server stopped before the end of the answer: the answer is cut off."""
    MALFORMED_COMPLETION = "malformed_completion"
    """HTTP 200, but the body is not a chat completion."""
    PERMANENT_HTTP = "permanent_http"
    """A 4xx that another attempt would not change."""
    EXHAUSTED_RETRIES = "exhausted_retries"
    DEADLINE = "deadline"
    LOST_WITH_SERVER = "lost_with_server"
    """In flight when its server died. It may be the cause, so it is sent again alone."""
    KILLS_SERVER = "kills_server"
    """The server died again when the request was sent alone."""


_OK: Final = Outcome.OK
"""Looking a member up in its enumeration takes Python 3.11 as long as a call, and `ok` is asked several times per answer."""


class TeacherAnswer(BaseModel):
    """The answer to one request, also if it failed. Data, not an exception."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    outcome: Outcome
    detail: str = ""
    """Why there is no usable text. With usable text: what came beside it (thoughts)."""
    text: str = ""
    finish_reason: str | None = None
    first_token_logprobs: dict[str, float] = Field(default_factory=dict)
    prompt_tokens: NonNegativeInt = 0
    completion_tokens: NonNegativeInt = 0
    latency_s: float = 0.0
    """Duration of the last attempt."""
    total_s: float = 0.0
    """Duration of the whole request, with waits and earlier attempts."""
    attempts: NonNegativeInt = 0
    model: str = ""
    fingerprint: str | None = None
    """The server's own identifier of its build (`system_fingerprint`), if it sends one."""
    endpoint: str = ""

    @property
    def ok(self) -> bool:
        return self.outcome is _OK

    @property
    def is_owed(self) -> bool:
        """The server did not answer, so nothing is known about the request: a later run sends it again."""
        return self.outcome in (Outcome.EXHAUSTED_RETRIES, Outcome.DEADLINE, Outcome.LOST_WITH_SERVER)
