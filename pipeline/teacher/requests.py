"""The teacher's three kinds of request: assess a query, reason about it, verify an answer.

Each takes a prompt and returns the server's answer together with its meaning: a trace or a judgement, or why it is none. An
answer that did not arrive (see `Outcome`) has no meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.teacher.client import TeacherClient
from pipeline.teacher.dialect import image_part, spoken
from pipeline.teacher.request_body import TeacherRequest
from pipeline.teacher.request_images import EncodedImage
from pipeline.traces.families import Family
from pipeline.traces.grammar import trace_grammar
from pipeline.traces.judgements import Labels, choice_fields, judgement_from_logprobs, judgement_from_statement
from pipeline.traces.parser import parse_trace
from pipeline.traces.sampling import draw_fields, greedy_fields
from prompts import ImageSlot, Prompt
from schemas.judgement import Judgement, NoJudgement
from schemas.teacher import TeacherAnswer
from schemas.teacher_config import TeacherConfig
from schemas.trace import Malformed, Trace

_STATED = "\nInstead of the word, write one line: confidence: a number from 0.00 to 1.00 that the answer is {positive}."


@dataclass(frozen=True, slots=True)
class Reasoned:
    """`trace` is None if no usable text arrived."""

    answer: TeacherAnswer
    trace: Trace | Malformed | None


@dataclass(frozen=True, slots=True)
class Judged:
    """`judgement` is None if no usable text arrived."""

    answer: TeacherAnswer
    judgement: Judgement | NoJudgement | None


def messages(prompt: Prompt, images: Mapping[str, EncodedImage], config: TeacherConfig) -> list[dict[str, Any]]:
    """A prompt as one user turn; `images`: role -> image."""
    parts = [
        image_part(images[part.role], config) if isinstance(part, ImageSlot) else {"type": "text", "text": part}
        for part in prompt
    ]
    return [{"role": "user", "content": parts}]


def reason_fields(family: Family, config: TeacherConfig, *, attempt: int = 0, hotter: float = 0.0) -> dict[str, Any]:
    """Fields of a request for a trace. Each attempt has its own seed; `hotter` is added to the temperature."""
    fields = draw_fields(config.sampling, attempt=attempt, hotter=hotter)
    if config.grammar:
        fields["structured_outputs"] = {"grammar": _grammar(family, config)}
    return spoken(fields, config)


def _grammar(family: Family, config: TeacherConfig) -> str:
    if config.grammar == "bounded":
        return trace_grammar(family, max_facet_chars=config.max_facet_chars, max_answer_chars=config.max_answer_chars)
    return trace_grammar(family)


def judge_fields(labels: Labels, config: TeacherConfig) -> dict[str, Any]:
    """What a request for a judgement holds besides its messages."""
    return spoken(choice_fields(labels) if config.judgements == "logprobs" else greedy_fields(32), config)


def judge_prompt(prompt: Prompt, labels: Labels, config: TeacherConfig) -> Prompt:
    """The prompt as it is sent: for endpoints without log-probabilities it asks for a number."""
    return prompt if config.judgements == "logprobs" else (*prompt, _STATED.format(positive=labels.positive))


def read_judgement(answer: TeacherAnswer, labels: Labels, config: TeacherConfig) -> Judgement | NoJudgement:
    """The judgement in a usable answer, or why there is none."""
    if config.judgements == "logprobs":
        judgement = judgement_from_logprobs(answer.first_token_logprobs, labels)
    else:
        judgement = judgement_from_statement(answer.text)
    if isinstance(judgement, NoJudgement) and answer.detail:
        return judgement.model_copy(update={"detail": f"{judgement.detail}; {answer.detail}"})
    return judgement


def read_trace(answer: TeacherAnswer, family: Family) -> Trace | Malformed:
    """The trace in a usable answer, or why there is none."""
    trace = parse_trace(answer.text, family)
    if isinstance(trace, Malformed) and answer.detail:
        return trace.model_copy(update={"detail": f"{trace.detail}; {answer.detail}"})
    return trace


def reason_request(
    key: str, prompt: Prompt, images: dict[str, EncodedImage], family: Family, config: TeacherConfig
) -> TeacherRequest:
    return TeacherRequest(key, messages(prompt, images, config), reason_fields(family, config))


def judge_request(
    key: str, prompt: Prompt, images: dict[str, EncodedImage], labels: Labels, config: TeacherConfig
) -> TeacherRequest:
    asked = messages(judge_prompt(prompt, labels, config), images, config)
    return TeacherRequest(key, asked, judge_fields(labels, config))


async def reason(client: TeacherClient, request: TeacherRequest, family: Family) -> Reasoned:
    answer = await client.ask(request)
    return Reasoned(answer, read_trace(answer, family) if answer.ok else None)


async def judge(client: TeacherClient, request: TeacherRequest, labels: Labels, config: TeacherConfig) -> Judged:
    answer = await client.ask(request)
    return Judged(answer, read_judgement(answer, labels, config) if answer.ok else None)
