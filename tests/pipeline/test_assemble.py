"""Near-duplicates become rejections that still hold what the teacher wrote."""

from __future__ import annotations

from pipeline.assemble import _raw
from pipeline.families import family_of
from pipeline.parse import parse_trace
from schemas.trace import Trace


def test_the_raw_answer_of_a_near_duplicate_is_a_trace_again() -> None:
    family = family_of(7)
    facets = [{"name": facet.name, "text": f"about the {facet.name}"} for facet in family.facets]
    parsed = parse_trace(_raw({"task_id": 7, "facets": facets, "answer": "a black disc, day"}), family)
    assert isinstance(parsed, Trace)
    assert parsed.answer == "a black disc, day"
    assert [(facet.name, facet.text) for facet in parsed.facets] == [(f["name"], f["text"]) for f in facets]
