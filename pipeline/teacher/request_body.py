"""One request to the teacher, and the exact bytes that are sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class TeacherRequest:
    """A chat request.

    Args:
        key: the caller's name for it, which the answer repeats.
        messages: OpenAI chat messages; images are parts with a ``file://`` or ``data:`` URL.
        fields: the rest of the body, without the model: sampling, structured_outputs, logprobs.
    """

    key: str
    messages: list[dict[str, Any]]
    fields: dict[str, Any] = field(default_factory=dict)


def request_body(request: TeacherRequest, model: str) -> bytes:
    """The body to send. The same request gives the same bytes."""
    return orjson.dumps({"model": model, "messages": request.messages, **request.fields}, option=orjson.OPT_SORT_KEYS)
