"""Kinds of reasoning that a query may need."""

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
        """Whether finding the target takes an operation beyond what the query shows."""
        return self is not ReasoningKind.NONE
