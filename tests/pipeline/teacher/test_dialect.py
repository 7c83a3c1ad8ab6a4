from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from bench.strict_server import FIELDS
from pipeline.teacher.dialect import image_part
from pipeline.teacher.request_images import EncodedImage
from pipeline.teacher.requests import judge_fields, reason_fields
from pipeline.traces.families import COMPOSED
from pipeline.traces.judgements import ASSESS
from schemas.teacher_config import TeacherConfig

IMAGE = EncodedImage("data:image/png;base64,AA==", "0a")


def config(**changes: Any) -> TeacherConfig:
    endpoints = [{"url": "http://a/v1", "model": "m"}]
    return TeacherConfig.model_validate({"hosting": "external", "endpoints": endpoints} | changes)


def asked(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    teacher = config(**changes)
    return reason_fields(COMPOSED, teacher), judge_fields(ASSESS, teacher)


def test_openai_gets_only_the_fields_of_its_reference() -> None:
    for fields in asked(dialect="openai"):
        assert fields.keys() <= FIELDS - {"max_tokens"}
        assert fields["max_completion_tokens"] in (8, 512)
    assert asked(dialect="openai")[1]["logprobs"]
    assert image_part(IMAGE, config(dialect="openai")) == {"type": "image_url", "image_url": {"url": IMAGE.url}}
    assert image_part(IMAGE, config())["uuid"] == "0a"


def test_external_endpoints_read_no_files_unless_configured() -> None:
    assert config().images == "data_url"
    assert config(images="path").images == "path"
    assert TeacherConfig.model_validate({"server": {"model": "m"}}).images == "path"
    again = config(dialect="openai")
    assert TeacherConfig.model_validate_json(again.model_dump_json()) == again


def test_the_configs_fields_override_ours_and_null_omits_one() -> None:
    trace, judgement = asked(
        extra_body={"temperature": None, "top_logprobs": 5, "logit_bias": {7: -1}, "max_tokens": 900},
        chat_template_kwargs={"enable_thinking": False},
    )
    for fields in (trace, judgement):
        assert "temperature" not in fields
        assert fields["max_tokens"] == 900
        assert fields["logit_bias"] == {"7": -1}
        assert fields["chat_template_kwargs"] == {"enable_thinking": False}
    assert "top_logprobs" not in trace
    assert judgement["top_logprobs"] == 5


def test_settings_that_are_not_set_are_not_sent() -> None:
    """Otherwise earlier requests would get new keys and be asked again."""
    assert asked()[0].keys() == {
        *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
        *("max_tokens", "seed", "structured_outputs"),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dialect": "openai", "grammar": True}, "set grammar: false"),
        ({"dialect": "openai", "images": "path"}, "set images: data_url"),
        ({"dialect": "openai", "sampling": {"top_k": 5}}, "sampling.top_k"),
        ({"dialect": "openai", "chat_template_kwargs": {"enable_thinking": False}}, "extra_body"),
        ({"dialect": "openai", "hosting": "managed", "server": {"model": "m"}}, "hosting: external"),
        ({"extra_body": {"messages": []}}, "messages cannot be given"),
        ({"extra_body": {"temperature": 1}}, "sampling.temperature"),
        ({"extra_body": {"a": float("nan")}}, "JSON"),
    ],
    ids=str,
)
def test_settings_that_the_dialect_cannot_express_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**changes)
