"""People's judgements of a dataset: `labels.json`, which the page of `mbeir-cot label` writes, and what `agreement` finds."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, StringConstraints

from schemas.judgement import Probability


class LabelKind(StrEnum):
    VERDICT = "verdict"
    """Of a trace: does its answer fit the positive and satisfy the query?"""
    ROUTE = "route"
    """Of a query: does it take reasoning?"""


class LabelValue(StrEnum):
    YES = "yes"
    NO = "no"
    UNSURE = "unsure"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Label(_Frozen):
    """One judgement. `shown` is a digest of what was judged: labels of traces that have changed since are not counted."""

    kind: LabelKind
    id: str
    shown: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    value: LabelValue


class Labels(_Frozen):
    """A whole file."""

    version: Annotated[int, Field(ge=1, le=1)] = 1
    dataset: str
    """The dataset's name."""
    config_sha256: str
    """Of the build that was labelled."""
    labels: tuple[Label, ...]


class Estimate(_Frozen):
    """A share of the whole dataset, estimated from the labelled sample, with its 95% interval."""

    value: float
    low: float
    high: float


class Threshold(_Frozen):
    """The least threshold at which the labelled sample has the wanted precision, and what it would give."""

    wanted: Probability
    threshold: float
    precision: Probability
    recall: Probability
    labels: NonNegativeInt
    """Labels above it."""


class Agreement(_Frozen):
    """How verdicts, or routes, agree with people's judgements."""

    kind: LabelKind
    family: str
    """A task family, or `all`."""
    labels: NonNegativeInt
    unsure: NonNegativeInt
    rows: NonNegativeInt
    """Rows of the dataset that the sample stands for."""
    precision: Estimate | None
    """Of the accepted traces (the reasoning routes): the share that people find right (complex)."""
    recall: Estimate | None
    """Of what people find right (complex): the share that was accepted (reasons)."""
    kappa: Estimate | None
    """Cohen's."""
    threshold: Threshold | None = None
