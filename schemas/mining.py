"""Settings of `mbeir-cot mine`, and what it reports."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class MiningSettings(_Frozen):
    """Which candidates are hard negatives of a query."""

    keep: PositiveInt = 16
    """Negatives kept of each query, hardest first."""
    depth: PositiveInt = 100
    """Candidates looked at, best first."""
    skip: NonNegativeInt = 0
    """The first candidates that are passed over, positives not counted: in sparsely labelled data many are right."""
    margin: Annotated[float, Field(gt=0, le=1)] = 0.95
    """A candidate that scores above this share of the positive's score is taken for right, and passed over (NV-Retriever's
    TopK-PercPos, arXiv 2407.15831, with its 95%)."""
    near: Annotated[float, Field(gt=0, le=1)] = 0.98
    """So is one whose cosine with a positive is at least this."""
    yes: Annotated[float, Field(ge=0, le=1)] = 0.5
    """With a verifier: so is one that it says supports the query's answer, with more than this probability."""


class MiningReport(_Frozen):
    """What was mined. Counts are of query and candidate pairs, each under the first rule that applies."""

    queries: NonNegativeInt
    mined: NonNegativeInt
    """Queries with at least one negative."""
    negatives: NonNegativeInt
    positives: NonNegativeInt
    """Passed over: the query's own positives, and those of queries that share one with it."""
    duplicates: NonNegativeInt
    """With the same text and image as a positive, or at least `near` to one."""
    skipped: NonNegativeInt
    too_close: NonNegativeInt
    """Above `margin` of the positive's score."""
    judged: NonNegativeInt = 0
    """Negatives that the verifier gave its word on."""
    right: NonNegativeInt = 0
    """Passed over by its word."""
    found: float
    """Share of the queries with a positive among the candidates looked at."""
    positive_score: float
    negative_score: float
    """Means."""
    spread: float
    """Mean cosine of two candidates drawn at random. Near 1 all embeddings are alike: the embedder has collapsed."""
    unreadable_queries: NonNegativeInt = 0
    """Left out: their images cannot be read (`data.skip_unreadable`)."""
    unreadable_candidates: NonNegativeInt = 0
