"""What `mbeir-cot utility` reports."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, NonNegativeInt


class UtilityReport(BaseModel):
    """Of the queries whose utility was measured. Ranks are of the best positive, among the candidates compared with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    queries: NonNegativeInt
    helped: NonNegativeInt
    """With a utility above 0."""
    compared_with: NonNegativeInt
    """Candidates of the sample; a query's listed hard negatives come on top."""
    rank_without: float
    """Means."""
    rank_with: float | None
    """None for the form that needs no trace."""
    margin_without: float
    margin_with: float | None
    unreadable_queries: NonNegativeInt = 0
    """Left out: their images cannot be read (`data.skip_unreadable`)."""
    unreadable_candidates: NonNegativeInt = 0
