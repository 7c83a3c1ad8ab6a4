"""Why a query needs reasoning, if it does."""

from __future__ import annotations

from enum import StrEnum


class ReasoningKind(StrEnum):
    NONE = "none"
    EDIT = "edit"
    COUNTING = "counting"
    COMPARISON = "comparison"
    NEGATION = "negation"
    MULTI_HOP = "multi_hop"
    GROUNDING = "grounding"

    @property
    def needs_reasoning(self) -> bool:
        """Whether the target's content takes an operation that the query does not show."""
        return self is not ReasoningKind.NONE
