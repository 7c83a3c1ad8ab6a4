"""One request to the teacher, and the exact bytes that are sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class TeacherRequest:
    """Args:
    key: the caller's name for it; comes back with the answer.
    messages: OpenAI chat messages; images are parts with a ``file://`` or ``data:`` URL.
    fields: everything else of the body but the model: sampling, structured_outputs, logprobs.
    """

    key: str
    messages: list[dict[str, Any]]
    fields: dict[str, Any] = field(default_factory=dict)


def request_body(request: TeacherRequest, model: str) -> bytes:
    """The same request gives the same bytes, so that a fingerprint can be taken of it."""
    return orjson.dumps({"model": model, "messages": request.messages, **request.fields}, option=orjson.OPT_SORT_KEYS)
