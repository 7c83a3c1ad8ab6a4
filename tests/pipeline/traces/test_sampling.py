"""Requests alone decide the sampling, checked with vLLM's own request model: generation_config.json has no effect."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.teacher.requests import judge_fields, reason_fields
from pipeline.traces.families import COMPOSED
from pipeline.traces.judgements import VERIFY
from schemas.teacher_config import TeacherConfig

HABITS = {"repetition_penalty": 1.05, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.1, "presence_penalty": 1.5} | {
    "frequency_penalty": 0.5
}


def config(**changes: Any) -> TeacherConfig:
    endpoints = [{"url": "http://a/v1", "model": "m"}]
    return TeacherConfig.model_validate({"hosting": "external", "endpoints": endpoints} | changes)


FIELDS = {
    "trace": reason_fields(COMPOSED, config(), attempt=1, hotter=0.3),
    "judgement": judge_fields(VERIFY, config()),
    "stated judgement": judge_fields(VERIFY, config(judgements="stated")),
    "own settings": reason_fields(
        COMPOSED, config(sampling={"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.2, "presence_penalty": 0.1})
    ),
}


@pytest.mark.slow  # importing vLLM
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS.keys())
def test_a_models_generation_config_changes_nothing(fields: dict[str, Any]) -> None:
    protocol = pytest.importorskip("vllm.entrypoints.openai.chat_completion.protocol")
    request = protocol.ChatCompletionRequest(messages=[{"role": "user", "content": "x"}], model="m", **fields)
    assert request.model_extra in (None, {})  # it knows every field
    plain, swayed = (request.to_sampling_params(fields["max_tokens"], habits) for habits in ({}, HABITS))
    assert repr(plain) == repr(swayed)
    assert swayed.temperature == fields["temperature"]
    assert swayed.repetition_penalty == fields["repetition_penalty"]
    assert swayed.presence_penalty == fields["presence_penalty"]


def test_the_defaults_are_neutral_and_settings_are_sent() -> None:
    neutral = {
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
    for fields in (FIELDS["trace"], FIELDS["judgement"], FIELDS["stated judgement"]):
        assert {name: fields[name] for name in neutral} == neutral
    assert FIELDS["trace"]["seed"] == 1
    assert FIELDS["trace"]["temperature"] == 0.5
    assert (FIELDS["own settings"]["top_k"], FIELDS["own settings"]["min_p"]) == (5, 0.05)
