from __future__ import annotations

from typing import Any

import pytest

from pipeline.teacher.requests import reason_fields
from pipeline.traces.families import COMPOSED
from pipeline.traces.grammar import trace_grammar
from schemas.teacher_config import TeacherConfig


@pytest.mark.parametrize(
    ("settings", "grammar"),
    [
        ({}, trace_grammar(COMPOSED)),
        ({"max_facet_chars": 50}, trace_grammar(COMPOSED)),
        ({"grammar": "bounded"}, trace_grammar(COMPOSED, max_facet_chars=600, max_answer_chars=400)),
        ({"grammar": "bounded", "max_facet_chars": 50}, trace_grammar(COMPOSED, max_facet_chars=50, max_answer_chars=400)),
        ({"grammar": False}, None),
    ],
    ids=str,
)
def test_the_config_decides_the_form(settings: dict[str, Any], grammar: str | None) -> None:
    config = TeacherConfig.model_validate(
        {"hosting": "external", "endpoints": [{"url": "http://a/v1", "model": "m"}]} | settings
    )
    found = reason_fields(COMPOSED, config)
    assert found.get("structured_outputs") == (None if grammar is None else {"grammar": grammar})
