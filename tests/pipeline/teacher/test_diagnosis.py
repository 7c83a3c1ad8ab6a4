"""Answers of real servers, as reported, and their diagnosis."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from pipeline.teacher.diagnosis import trouble
from pipeline.teacher.request_images import EncodedImage
from pipeline.teacher.requests import judge_request, read_judgement, read_trace, reason_request
from pipeline.teacher.response import THINKS, read_completion
from pipeline.traces.families import VISUAL
from pipeline.traces.judgements import ASSESS
from prompts import ImageSlot
from schemas.judgement import NoJudgement
from schemas.teacher import Outcome, TeacherAnswer
from schemas.teacher_config import TeacherConfig
from tests.pipeline.teacher.fault_server import completion

PROMPT = (ImageSlot("query"), "What is it?")
IMAGES = {"query": EncodedImage("data:image/png;base64,AA==", "0a")}


def config(**changes: Any) -> TeacherConfig:
    endpoints = [{"url": "http://a/v1", "model": "m"}]
    return TeacherConfig.model_validate({"hosting": "external", "endpoints": endpoints} | changes)


def refusal(message: str, parameter: str | None = None) -> str:
    return orjson.dumps({"error": {"message": message, "type": "invalid_request_error", "param": parameter}}).decode()


OPENAI = {"dialect": "openai"}
CASES: list[tuple[dict[str, Any], int, str, dict[str, Any] | str]] = [
    ({}, 400, refusal("Unrecognized request argument supplied: top_k"), {"dialect": "openai"}),
    (
        {},
        400,
        refusal("Unknown parameter: 'messages[0].content[0].uuid'.", "messages[0].content[0].uuid"),
        {"dialect": "openai"},
    ),
    (
        {"grammar": True},
        422,
        '{"detail":[{"type":"extra_forbidden","loc":["body","structured_outputs"],"msg":"Extra inputs are not permitted","input":{}}]}',
        {"dialect": "openai", "grammar": False},
    ),
    (
        OPENAI,
        400,
        refusal("Unsupported value: 'temperature' does not support 0.2 with this model.", "temperature"),
        {"extra_body": {"temperature": None}},
    ),
    (
        OPENAI | {"extra_body": {"seed": None}},
        400,
        refusal("Unknown parameter: 'max_completion_tokens'."),
        {"extra_body": {"seed": None, "max_completion_tokens": None, "max_tokens": 512}},
    ),
    (OPENAI, 400, refusal("You are not allowed to request logprobs from this model."), {"judgements": "stated"}),
    (OPENAI, 400, refusal("Invalid value for 'top_logprobs': at most 5."), {"extra_body": {"top_logprobs": 5}}),
    ({"chat_template_kwargs": {"a": 1}}, 400, refusal("chat_template_kwargs is not supported"), {"chat_template_kwargs": {}}),
    (
        {"images": "path"},
        400,
        '{"message":"Cannot load local files without `--allowed-local-media-path`."}',
        {"images": "data_url"},
    ),
    ({}, 400, '{"message":"At most 1 image(s) may be provided in one prompt."}', "limit-mm-per-prompt"),
    (
        {},
        400,
        "'max_tokens' or 'max_completion_tokens' is too large: 512. This model's maximum context length is 1024 tokens",
        "a longer context",
    ),
    ({}, 401, refusal("Incorrect API key provided"), "api_key_env"),
    ({}, 404, refusal("The model `x` does not exist"), "`model` of verifier.endpoints"),
]


@pytest.mark.parametrize(("changes", "status", "body", "remedy"), CASES, ids=[case[2][:60] for case in CASES])
def test_each_refusal_of_a_server_has_a_remedy(
    changes: dict[str, Any], status: int, body: str, remedy: dict[str, Any] | str
) -> None:
    teacher = config(**changes)
    answer = TeacherAnswer(key="k", outcome=Outcome.PERMANENT_HTTP, detail=f"HTTP {status}: {body}"[:300])
    asked = judge_request if "logprobs" in body else reason_request
    request = asked("1/x", PROMPT, IMAGES, ASSESS if asked is judge_request else VISUAL, teacher)  # type: ignore[arg-type]
    found = trouble("verifier", teacher, request, answer, None)
    assert found is not None
    if isinstance(remedy, str):
        assert remedy in found.remedy
    else:
        assert found.sets == {f"verifier.{key}": value for key, value in remedy.items()}
        config(**changes | remedy)  # the named settings are a valid config
        assert found.stops


THOUGHTS = "Okay, let me see."
LOGPROBS = {"content": [{"token": "Okay", "logprob": -0.1, "top_logprobs": [{"token": "simple", "logprob": -0.1}]}]}


@pytest.mark.parametrize(
    ("message", "thinks"),
    [
        ({"content": None, "reasoning_content": THOUGHTS}, True),
        ({"content": "simple", "reasoning": THOUGHTS}, True),
        ({"content": "<think>\nOkay</think>simple"}, True),
        ({"content": "simple"}, False),
        ({"content": None, "refusal": "I cannot."}, False),
    ],
    ids=["hidden", "first", "aloud", "plain", "refused"],
)
def test_the_log_probabilities_of_a_thought_are_not_a_judgement(message: dict[str, Any], thinks: bool) -> None:
    body = completion()
    body["choices"][0] |= {"message": message, "logprobs": LOGPROBS}
    done, teacher = read_completion(orjson.dumps(body)), config()
    assert done.note.startswith(THINKS) == thinks
    answer = TeacherAnswer(
        key="k", outcome=Outcome.OK, text=done.text, detail=done.note, first_token_logprobs=done.first_token_logprobs
    )
    judged = read_judgement(answer, ASSESS, teacher)
    assert isinstance(judged, NoJudgement) == thinks
    found = trouble("teacher", teacher, judge_request("1/x", PROMPT, IMAGES, ASSESS, teacher), answer, judged)
    assert (found.sets if found else {}) == ({"teacher.chat_template_kwargs": {"enable_thinking": False}} if thinks else {})
    if "refusal" in message:
        assert "the model refused" in read_trace(answer, VISUAL).detail  # type: ignore[union-attr]
    quiet = config(chat_template_kwargs={"enable_thinking": False})
    still = trouble("teacher", quiet, judge_request("1/x", PROMPT, IMAGES, ASSESS, quiet), answer, judged)
    assert not thinks or (still is not None and "Instruct" in still.remedy)
