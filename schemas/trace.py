"""A teacher's chain of thought: named facets and an answer, and the reasons for which one is not well-formed."""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

TraceText = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^<>\s](?:[^<>\r\n]*[^<>\s])?$")]
"""One line without angle brackets, not empty, no space at either end: what the output grammar lets a teacher write."""


class FacetText(BaseModel):
    """One labelled line of the reasoning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    label: str
    text: TraceText


class Trace(BaseModel):
    """A well-formed trace of one task family."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    facets: Annotated[tuple[FacetText, ...], Field(min_length=1)]
    answer: TraceText

    @cached_property
    def reasoning(self) -> str:
        """The facets as running text without tags: what a student learns to write before the answer."""
        return " ".join(f"{facet.label}: {_closed(facet.text)}" for facet in self.facets)

    def render(self) -> str:
        """The tagged form that teachers write; parsing it gives the trace again."""
        lines = "\n".join(f"{facet.label}: {facet.text}" for facet in self.facets)
        return f"<reasoning>\n{lines}\n</reasoning>\n<answer>{self.answer}</answer>"


def _closed(text: str) -> str:
    return text if text[-1] in ".!?" else f"{text}."


class FormatReason(StrEnum):
    """Why an output is no trace (the paper's format rule, taken apart)."""

    EMPTY_OUTPUT = "empty_output"
    UNFINISHED = "unfinished"
    MISSING_REASONING = "missing_reasoning"
    MISSING_ANSWER = "missing_answer"
    REPEATED_TAG = "repeated_tag"
    NESTED_TAG = "nested_tag"
    REORDERED_TAGS = "reordered_tags"
    TEXT_OUTSIDE = "text_outside"
    MISSING_FACET = "missing_facet"
    UNKNOWN_FACET = "unknown_facet"
    REPEATED_FACET = "repeated_facet"
    REORDERED_FACETS = "reordered_facets"
    EMPTY_FACET = "empty_facet"
    EMPTY_ANSWER = "empty_answer"
    STRAY_MARKUP = "stray_markup"
    PROMPT_LEAKAGE = "prompt_leakage"


class Malformed(BaseModel):
    """An output that is no trace."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: FormatReason
    detail: str
