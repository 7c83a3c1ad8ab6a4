"""Sampling: every field that decides an answer is sent with every request.

A server fills what a request leaves open from the model's own generation_config.json: Qwen2.5-VL brings a repetition penalty
(over the prompt's words too, which a trace is told to use again), Qwen3-VL brings top-k, top-p and a presence penalty. Fields
that are sent also stand in the request's fingerprint, so that other habits are another question.
"""

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
    """For a trace. Each attempt has a seed of its own; `hotter` adds temperature."""
    return {
        **{name: getattr(sampling, name) for name in _PLAIN},
        "temperature": round(sampling.temperature + hotter, 4),
        "max_tokens": sampling.max_tokens,
        "seed": sampling.seed + attempt,
    }


def greedy_fields(max_tokens: int) -> dict[str, Any]:
    """For a judgement: the likeliest token, with nothing added to its logit or taken from it."""
    return {**_PLAIN, "temperature": 0.0, "max_tokens": max_tokens}
