"""Parses the HTTP response of a chat endpoint."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import orjson

THINKS: Final = "the model thinks before it answers"
"""Begins the note on an answer that comes with thoughts."""

_SHOWN: Final = 60
_ROUNDED: Final = 1e-2
"""Log-probabilities may be above 0 by rounding."""


class Completion(NamedTuple):
    """The content of a well-formed chat completion.

    first_token_logprobs: empty if the first token belongs to thinking and says nothing about the answer.
    note: a remark on what comes with the answer or instead of it; empty for an ordinary one.
    """

    text: str
    finish_reason: str | None
    first_token_logprobs: dict[str, float]
    prompt_tokens: int
    completion_tokens: int
    model: str
    fingerprint: str | None
    note: str = ""


def read_completion(body: bytes) -> Completion:
    """Raises ValueError saying what is wrong with a body that is no chat completion."""
    try:
        data: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"the body is no JSON ({error}): {body[:80]!r}") from None
    try:
        choice = data["choices"][0]
        message = choice["message"]
        text = message["content"]
        usage = data.get("usage") or {}
        if text is None:
            text = ""
        if not isinstance(text, str):
            raise TypeError("content is no string")
        note = _note(text, message)
        return Completion(
            text,
            _optional_text(choice.get("finish_reason")),
            {} if note.startswith(THINKS) else _first_token(choice.get("logprobs")),
            _count(usage.get("prompt_tokens")),
            _count(usage.get("completion_tokens")),
            str(data.get("model") or ""),
            _optional_text(data.get("system_fingerprint")),
            note,
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"the body is no chat completion ({type(error).__name__}: {error}): {body[:120]!r}") from None


def _note(text: str, message: dict[str, Any]) -> str:
    thoughts = message.get("reasoning") or message.get("reasoning_content")  # vLLM's name for it, and most others'
    if thoughts and isinstance(thoughts, str):
        place = "" if text else ", and all that it wrote was taken for thinking"
        return f"{THINKS}{place}: {thoughts[:_SHOWN]!r}"
    if text.lstrip().lower().startswith("<think>"):
        return f"{THINKS}: {text.lstrip()[:_SHOWN]!r}"
    if not text and message.get("refusal"):
        return f"the model refused: {str(message['refusal'])[:_SHOWN]!r}"
    return ""


def _first_token(logprobs: Any) -> dict[str, float]:
    """Log-probabilities of the first token's alternatives, or of the token alone if the server lists none."""
    if not logprobs or not logprobs.get("content"):
        return {}
    first = logprobs["content"][0]
    return {str(item["token"]): _logprob(item["logprob"]) for item in first.get("top_logprobs") or (first,)}


def _logprob(value: Any) -> float:
    logprob = float(value)
    if not logprob <= _ROUNDED:  # NaN too
        raise ValueError(f"a log-probability of {value}")
    return logprob


def _optional_text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _count(value: Any) -> int:
    count = int(value or 0)
    if not 0 <= count < 1 << 31:
        raise ValueError(f"{count} tokens")
    return count
