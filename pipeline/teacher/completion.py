"""An HTTP answer of a chat endpoint, taken apart."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson


class Completion(NamedTuple):
    """What a well-formed chat completion holds."""

    text: str
    finish_reason: str | None
    first_token_logprobs: dict[str, float]
    prompt_tokens: int
    completion_tokens: int
    model: str
    fingerprint: str | None


def read_completion(body: bytes) -> Completion:
    """Raises ValueError saying what is wrong with a body that is no chat completion."""
    try:
        data: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"the body is no JSON ({error}): {body[:80]!r}") from None
    try:
        choice = data["choices"][0]
        text = choice["message"]["content"]
        usage = data.get("usage") or {}
        if text is None:
            text = ""
        if not isinstance(text, str):
            raise TypeError("content is no string")
        return Completion(
            text,
            _optional_text(choice.get("finish_reason")),
            _first_token(choice.get("logprobs")),
            _count(usage.get("prompt_tokens")),
            _count(usage.get("completion_tokens")),
            str(data.get("model") or ""),
            _optional_text(data.get("system_fingerprint")),
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"the body is no chat completion ({type(error).__name__}: {error}): {body[:120]!r}") from None


def _first_token(logprobs: Any) -> dict[str, float]:
    if not logprobs or not logprobs.get("content"):
        return {}
    return {str(item["token"]): float(item["logprob"]) for item in logprobs["content"][0].get("top_logprobs") or ()}


def _optional_text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _count(value: Any) -> int:
    count = int(value or 0)
    if not 0 <= count < 1 << 31:
        raise ValueError(f"{count} tokens")
    return count
