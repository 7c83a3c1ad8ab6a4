"""Requests and answers of `/v1/embeddings`: OpenAI's fields, messages with content parts as vLLM takes them, and our own.

Whatever form `input` or `messages` has, a request becomes a list of conversations: one user message each, and perhaps a system
message, which is the instruction.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from schemas.errors import InputError
from schemas.service import InputType, ServiceLimits, ServiceRoute


class TextPart(BaseModel):
    type: Literal["text", "input_text"]
    text: str


class ImageUrl(BaseModel):
    url: str


class ImagePart(BaseModel):
    """`image_url` is {"url": …}, or the URL itself."""

    type: Literal["image_url", "input_image"]
    image_url: ImageUrl

    @model_validator(mode="before")
    @classmethod
    def _named(cls, fields: Any) -> Any:
        plain = isinstance(fields, dict) and isinstance(fields.get("image_url"), str)
        return {**fields, "image_url": {"url": fields["image_url"]}} if plain else fields


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(BaseModel):
    role: Literal["system", "developer", "user"]
    content: list[Part]

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, fields: Any) -> Any:
        plain = isinstance(fields, dict) and isinstance(fields.get("content"), str)
        return {**fields, "content": [{"type": "text", "text": fields["content"]}]} if plain else fields

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))


class ServiceInput(NamedTuple):
    """One input as it was sent: texts and images' URLs, in order."""

    parts: tuple[TextPart | ImagePart, ...]
    instruction: str | None

    @property
    def urls(self) -> list[str]:
        return [part.image_url.url for part in self.parts if isinstance(part, ImagePart)]

    @property
    def texts(self) -> list[str]:
        return [part.text for part in self.parts if isinstance(part, TextPart)]


class EmbeddingRequest(BaseModel):
    """A request. Unknown fields are refused: an answer that ignores one would be wrong."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    input: list[list[Message]] = Field(min_length=1)
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: PositiveInt | None = None
    user: str | None = None
    """Ignored, as by other servers."""
    instruction: str | list[str] | None = None
    """What the queries look for: one for all, or one each. A conversation's system message says the same."""
    route: ServiceRoute = "learned"
    input_type: InputType = "query"

    @model_validator(mode="before")
    @classmethod
    def _as_conversations(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        rest = {name: value for name, value in fields.items() if name != "messages"}
        if "messages" in fields and "input" in fields:
            raise ValueError("give input or messages, not both")
        if "messages" not in fields and "input" not in fields:
            raise ValueError("input is missing")
        return {**rest, "input": _conversations(fields.get("messages", fields.get("input")))}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.input_type != "query" and (self.instruction is not None or self.route == "always"):
            raise ValueError("instruction and route are for queries: candidates never reason")
        if isinstance(self.instruction, list) and len(self.instruction) != len(self.input):
            raise ValueError(f"{len(self.instruction):,} instructions for {len(self.input):,} inputs: give one, or one each")
        return self

    def inputs(self, limits: ServiceLimits) -> list[ServiceInput]:
        """Raises InputError for what exceeds a limit, or is no query or candidate."""
        if len(self.input) > limits.inputs:
            raise InputError(f"{len(self.input):,} inputs, more than {limits.inputs:,}", "send several requests")
        return [self._input(at, messages, limits) for at, messages in enumerate(self.input)]

    def _input(self, at: int, messages: Sequence[Message], limits: ServiceLimits) -> ServiceInput:
        *before, last = messages or [Message(role="system", content=[])]
        if last.role != "user" or len(before) > 1 or any(one.role == "user" for one in before):
            raise InputError(f"input {at}: one user message is expected", "a system message before it may be the instruction")
        given = self.instruction[at] if isinstance(self.instruction, list) else self.instruction
        if before and (given is not None or self.input_type != "query"):
            raise InputError(f"input {at}: a system message that cannot be its instruction", "give the instruction once")
        parsed = ServiceInput(tuple(last.content), before[0].text if before else given)
        _check_limits(f"input {at}", parsed, limits, most=limits.images if self.input_type == "query" else 1)
        return parsed


def _check_limits(name: str, parsed: ServiceInput, limits: ServiceLimits, *, most: int) -> None:
    if len(parsed.urls) > most:
        raise InputError(f"{name}: {len(parsed.urls)} images, more than {most}", "send fewer")
    if sum(map(len, parsed.texts)) > limits.chars or len(parsed.instruction or "") > limits.chars:
        raise InputError(f"{name}: a text of more than {limits.chars:,} characters", "shorten it")
    if not parsed.urls and not any(text.strip() for text in parsed.texts):
        raise InputError(f"{name} has neither text nor image", "give one")


def _conversations(given: Any) -> Any:
    """A list of conversations from any form that OpenAI or vLLM takes. What is none of them is left to the validation."""
    if isinstance(given, str):
        return [[{"role": "user", "content": given}]]
    if not isinstance(given, list):
        raise ValueError("input is a text, a list of texts, or messages")  # noqa: TRY004 (pydantic reports it)
    numbers = [one for one in given if isinstance(one, int) or (isinstance(one, list) and any(isinstance(x, int) for x in one))]
    if numbers:
        raise ValueError("tokens are not taken: send texts")
    if given and all(isinstance(one, dict) for one in given):
        return [given]
    return [[{"role": "user", "content": one}] if isinstance(one, str) else one for one in given]


class Embedded(NamedTuple):
    """One input's answer. Candidates have no route."""

    vector: NDArray[np.float32]
    prompt_tokens: int
    reasoned: bool = False
    ended: bool = True
    trace: str = ""
    p_direct: float | None = None
    tokens: int = 0
    confidence: float | None = None
    fell_back: bool = False


def answer(name: str, request: EmbeddingRequest, embedded: Sequence[Embedded]) -> dict[str, Any]:
    """OpenAI's answer. Each query also has its route, the route's probability, its trace and the trace's tokens."""
    return {
        "object": "list",
        "id": f"embd-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": name,
        "data": list(_rows(request, embedded)),
        "usage": {
            "prompt_tokens": sum(one.prompt_tokens for one in embedded),
            "completion_tokens": sum(one.tokens for one in embedded),
            "total_tokens": sum(one.prompt_tokens + one.tokens for one in embedded),
        },
    }


def _rows(request: EmbeddingRequest, embedded: Sequence[Embedded]) -> Iterator[dict[str, Any]]:
    for index, one in enumerate(embedded):
        row: dict[str, Any] = {"object": "embedding", "index": index, "embedding": _encode(request, one.vector)}
        if one.p_direct is not None:
            row |= {
                "route": "reasoning" if one.reasoned else "bypass",
                "p_reasoning": 1.0 - one.p_direct,
                "trace": one.trace or None,
                "trace_tokens": one.tokens,
                "trace_ended": one.ended,
                "trace_confidence": one.confidence,
                "fell_back": one.fell_back,
            }
        yield row


def _encode(request: EmbeddingRequest, vector: NDArray[np.float32]) -> str | list[float]:
    if request.dimensions is not None:
        vector = vector[: request.dimensions]
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    if request.encoding_format == "base64":
        return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
