"""Judgements as one token between two labels: a probability for the cost of reading the prompt.

The request restricts the answer to the labels and asks for log-probabilities. The probability is the positive label's share of
both labels' mass, over all tokens that begin them (with a space, in capitals, or a first piece of the word)."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

from pipeline.traces.sampling import greedy_fields
from schemas.config import RouteConfig
from schemas.construct import construct
from schemas.errors import ConfigError
from schemas.judgement import Judgement, JudgementReason, JudgementSource, NoJudgement
from schemas.record import RoutePolicy

TOP_LOGPROBS: Final = 20
_LEAST: Final = -40.0
"""The smallest log-probability that is assumed."""
_NUMBER: Final = re.compile(r"(?<![\d.])(?:(\d{1,3})\s*%|([01](?:\.\d+)?|\.\d+))(?![\d.])")


class Labels(NamedTuple):
    """Two answers; the probability is that of `positive`. A tuple, since each look-up in `_begun` hashes and compares it."""

    positive: str
    negative: str


ASSESS: Final = Labels("complex", "simple")
VERIFY: Final = Labels("yes", "no")


def choice_fields(labels: Labels) -> dict[str, Any]:
    """Fields of a chat request to vLLM for a judgement, besides model and messages."""
    return {
        **greedy_fields(8),  # a label may be several tokens; the first decides
        "logprobs": True,
        "top_logprobs": TOP_LOGPROBS,
        "structured_outputs": {"choice": [labels.positive, labels.negative]},
    }


def judgement_from_logprobs(top_logprobs: Mapping[str, float], labels: Labels) -> Judgement | NoJudgement:
    """The judgement from the first token's alternatives (token -> log-probability).

    A label without any listed token gets a bound: the smallest listed log-probability, and no more than the listed ones leave.
    """
    if not top_logprobs:
        return NoJudgement(reason=JudgementReason.NO_LOGPROBS, detail="the answer came without log-probabilities")
    of_labels: tuple[list[float], list[float]] = ([], [])
    for token, logprob in top_logprobs.items():
        if (which := _begun(token, labels)) is not None:
            of_labels[which].append(logprob)
    if not any(of_labels):
        seen = ", ".join(repr(token) for token in list(top_logprobs)[:5])
        return NoJudgement(reason=JudgementReason.NO_LABEL, detail=f"neither label is among the likeliest tokens ({seen}, …)")
    positive, negative = [_mass(logprobs) if logprobs else _bound(top_logprobs.values()) for logprobs in of_labels]
    source = JudgementSource.LOGPROBS if all(of_labels) else JudgementSource.BOUNDED
    return construct(Judgement, {"probability": _share(positive, negative), "source": source})


def judgement_from_statement(output: str) -> Judgement | NoJudgement:
    """The fallback for endpoints without log-probabilities: the last number from 0 to 1 (or per cent) in the output."""
    matches = list(_NUMBER.finditer(output))
    if not matches:
        return NoJudgement(reason=JudgementReason.NO_NUMBER, detail=f"no number between 0 and 1 in {output[:80]!r}")
    per_cent, fraction = matches[-1].groups()
    value = int(per_cent) / 100 if per_cent else float(fraction)
    return Judgement(probability=min(1.0, max(0.0, value)), source=JudgementSource.STATED)


class _Encodes(Protocol):
    def encode(self, text: str, *, add_special_tokens: bool = ...) -> Sequence[int]: ...


def require_distinct_labels(tokenizer: _Encodes, labels: Labels) -> None:
    """Raises ConfigError if both labels begin with the same token, which would not distinguish them."""
    first = [tokenizer.encode(label, add_special_tokens=False)[0] for label in (labels.positive, labels.negative)]
    if first[0] == first[1]:
        raise ConfigError(
            f"the labels {labels.positive!r} and {labels.negative!r} begin with the same token of this model",
            "choose labels that differ in their first token",
        )


def _mass(logprobs: Sequence[float]) -> float:
    """Log of the summed probability."""
    most = max(logprobs)
    if len(logprobs) == 1 or most == -math.inf:
        return most
    return most + math.log(sum(math.exp(value - most) for value in logprobs))


def _bound(listed: Collection[float]) -> float:
    """Of a token that is not listed: some servers list nothing but the token that they chose."""
    left = 1 - sum(math.exp(min(value, 0.0)) for value in listed)
    return max(_LEAST, min(*listed, math.log(left) if left > 0 else _LEAST, 0.0))


@lru_cache(maxsize=4096)
def _begun(token: str, labels: Labels) -> int | None:
    """Which label a token begins: 0 for the positive one, 1 for the negative one, None for neither or both."""
    word = token.strip().lower().lstrip("▁Ġ")
    begun = [bool(word) and label.lower().startswith(word) for label in (labels.positive, labels.negative)]
    return begun.index(True) if sum(begun) == 1 else None


def _share(positive: float, negative: float) -> float:
    if positive == negative:  # both may be -inf
        return 0.5
    difference = negative - positive
    return 1 / (1 + math.exp(difference)) if difference < 700 else 0.0


def needs_assessment(config: RouteConfig) -> bool:
    return config.policy is RoutePolicy.ASSESSOR or config.always_assess
