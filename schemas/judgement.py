"""A teacher's judgement between two labels, as a probability."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class JudgementSource(StrEnum):
    LOGPROBS = "logprobs"
    BOUNDED = "bounded"
    """One label was not among the listed log-probabilities. It got the smallest of them, so the probability is a bound."""
    STATED = "stated"
    """The model wrote a number. For endpoints without log-probabilities; much less well calibrated."""


class Judgement(BaseModel):
    """P(the positive label), e.g. P(complex) for an assessment, P(yes) for a verification."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    probability: Probability
    source: JudgementSource


class JudgementReason(StrEnum):
    """Why an answer is no judgement."""

    NO_LABEL = "no_label"
    NO_LOGPROBS = "no_logprobs"
    NO_NUMBER = "no_number"


class NoJudgement(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: JudgementReason
    detail: str
