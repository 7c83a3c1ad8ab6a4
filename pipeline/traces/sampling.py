"""Sampling: every field that influences an answer is sent with every request.

A server fills fields that a request leaves out from the model's generation_config.json: Qwen2.5-VL sets a repetition penalty
(which also covers the prompt's words, although a trace should use them), Qwen3-VL sets top-k, top-p and a presence penalty. All
fields that are sent are part of the request's fingerprint."""

from __future__ import annotations

from typing import Any, Final

from schemas.teacher_config import Sampling

_PLAIN: Final[dict[str, float]] = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def draw_fields(sampling: Sampling, *, attempt: int = 0, hotter: float = 0.0) -> dict[str, Any]:
    """Fields for a trace. Each attempt has its own seed; `hotter` is added to the temperature."""
    return {
        **{name: getattr(sampling, name) for name in _PLAIN},
        "temperature": round(sampling.temperature + hotter, 4),
        "max_tokens": sampling.max_tokens,
        "seed": sampling.seed + attempt,
    }


def greedy_fields(max_tokens: int) -> dict[str, Any]:
    """Fields for a judgement: the likeliest token, without any change of logits."""
    return {**_PLAIN, "temperature": 0.0, "max_tokens": max_tokens}
