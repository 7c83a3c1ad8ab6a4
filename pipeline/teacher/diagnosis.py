"""Finds out, from a server's answer to a trial request, what is wrong with the settings and which setting fixes it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.request import getproxies

from pipeline.teacher.cached_client import TOO_LONG
from pipeline.teacher.request_body import TeacherRequest
from pipeline.teacher.response import THINKS
from schemas.judgement import JudgementReason, NoJudgement
from schemas.teacher import Outcome, TeacherAnswer
from schemas.teacher_config import VLLM_ONLY, TeacherConfig
from schemas.trace import FormatReason, Malformed

_OF_VLLM: Final = VLLM_ONLY | {"structured_outputs", "uuid", "max_tokens"}
"""Fields that `dialect: openai` does not send."""

_FILES: Final = re.compile(r"local file|allowed.local.media|file:/|image_url\.url|invalid (?:image )?url", re.IGNORECASE)
_TOO_MANY: Final = re.compile(r"at most \d+ image", re.IGNORECASE)
_BLIND: Final = re.compile(r"not a multimodal|not support (?:image|vision)|image input is not|unknown part type", re.IGNORECASE)
_KEY: Final = re.compile(r"HTTP 40[13]\b")
_NO_KEY: Final = "set api_key_env of {who}.endpoints to a variable that holds a key of this server"
_PLACE: Final = re.compile(r"HTTP 404:")


@dataclass(frozen=True)
class Trouble:
    """Why a request failed, and what to do.

    Args:
        sets: settings (dotted keys) that fix it; `remedy` names them, or says what else to do.
        stops: every request of this kind will fail, so that a build should not begin.
    """

    detail: str
    remedy: str
    stops: bool = False
    sets: Mapping[str, Any] = field(default_factory=dict)


def trouble(who: str, config: TeacherConfig, request: TeacherRequest, answer: TeacherAnswer, meaning: object) -> Trouble | None:
    """None for a usable answer. who: `teacher` or `verifier`, whose settings these are.

    meaning: a trace or a judgement, or why it is none; None if no usable text arrived.
    """
    if answer.outcome is Outcome.PERMANENT_HTTP:
        return _refused(who, config, request, answer.detail)
    thinks = THINKS in answer.detail
    if answer.ok and not isinstance(meaning, Malformed | NoJudgement):
        return None
    if thinks:
        return _thinking(who, config, answer.detail)
    if answer.outcome is Outcome.INVALID_FINISH:
        return Trouble(answer.detail, _unfinished(who, config, request))
    if isinstance(meaning, NoJudgement):
        if meaning.reason is JudgementReason.NO_LOGPROBS:
            return _set(who, meaning.detail, {"judgements": "stated"}, " (less well calibrated)", stops=True)
        if meaning.reason is JudgementReason.NO_LABEL:
            return _set(
                who, meaning.detail, {"judgements": "stated"}, ", or use a model that answers with one of the two words"
            )
        return Trouble(meaning.detail, f"use another {who}, or {who}.judgements: logprobs if the server has them")
    if isinstance(meaning, Malformed):
        detail = f"{meaning.reason}: {meaning.detail}; it wrote {answer.text[:80]!r}"
        if config.grammar and meaning.reason is not FormatReason.PROMPT_LEAKAGE:
            return _set(who, detail, {"grammar": False}, ": this server does not constrain answers by a grammar")
        return Trouble(detail, "repairs and screens deal with these; if there are many, use another teacher or prompt set")
    return Trouble(answer.detail, "see the server's log")


def unreachable(who: str, config: TeacherConfig, detail: str) -> Trouble:
    """The failure of a server whose list of models cannot be read."""
    if _KEY.match(detail):
        return Trouble(detail, _NO_KEY.format(who=who), stops=True)
    if config.transport.trust_env:
        return Trouble(
            detail, f"start the server, fix the URL in {who}.endpoints, or fix the proxy's variables (no_proxy excludes hosts)"
        )
    if config.hosting == "external" and getproxies():
        proxy = _set(who, detail, {"transport.trust_env": True}, " if it is reached only through your shell's proxy")
        return Trouble(detail, f"start the server, fix the URL in {who}.endpoints, or {proxy.remedy}", sets=proxy.sets)
    return Trouble(detail, f"start the server, or fix the URL in {who}.endpoints")


def refused_field(detail: str, request: TeacherRequest) -> str | None:
    """The sent field that a 400 names."""
    sent = [*request.fields, *{name for part in request.messages[0]["content"] for name in part if name != "type"}]
    if named := re.search(r'"param"\s*:\s*"([^"]+)"', detail):
        last = re.split(r"[.\[\]]+", named[1].rstrip("]"))[-1]
        if last in sent:
            return last
    places = {name: place.start() for name in sent if (place := re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", detail))}
    places.pop("text", None)  # too common a word
    return min(places, key=places.__getitem__, default=None)


def _refused(who: str, config: TeacherConfig, request: TeacherRequest, detail: str) -> Trouble:
    if _KEY.match(detail):
        return Trouble(detail, _NO_KEY.format(who=who), stops=True)
    if _PLACE.match(detail):
        return Trouble(detail, f"fix `url` (with its version, /v1) and `model` of {who}.endpoints", stops=True)
    if _FILES.search(detail) and config.images == "path":
        also = ", or start the server with --allowed-local-media-path"
        return _set(who, f"images by path: {detail}", {"images": "data_url"}, also, stops=True)
    if _TOO_MANY.search(detail):
        return Trouble(detail, "start the server with --limit-mm-per-prompt '{\"image\": 2}'", stops=True)
    if _BLIND.search(detail):
        return Trouble(detail, "use a vision-language model", stops=True)
    if TOO_LONG.search(detail):  # tested first, since such a message names fields too
        longer = (
            f"raise {who}.server.max_model_len" if config.hosting == "managed" else "start the server with a longer context"
        )
        return Trouble(detail, f"{longer}, or lower {who}.max_pixels or {who}.sampling.max_tokens")
    name = refused_field(detail, request)
    if name is None:
        return Trouble(detail, "see the server's log for the reason; extra_body adds or leaves out any field", stops=True)
    detail = f"it refuses the field {name}: {detail}"
    if name == "chat_template_kwargs":
        return _set(who, detail, {"chat_template_kwargs": {}}, "; extra_body adds any other field", stops=True)
    if config.dialect == "vllm" and config.hosting == "external" and name in _OF_VLLM:
        sets: dict[str, Any] = {"dialect": "openai"}
        sets |= {"grammar": False} if config.grammar and "grammar" in config.model_fields_set else {}
        sets |= {"images": "data_url"} if config.images == "path" else {}
        return _set(who, detail, sets, stops=True)
    if name == "logprobs":
        return _set(who, detail, {"judgements": "stated"}, " (less well calibrated)", stops=True)
    changed: dict[str, Any] = {name: None}
    if name == "top_logprobs":
        changed = {name: 5}
    elif name == "max_completion_tokens":
        changed = {name: None, "max_tokens": config.sampling.max_tokens}
    return _set(who, detail, {"extra_body": config.extra_body | changed}, stops=True)


def _thinking(who: str, config: TeacherConfig, detail: str) -> Trouble:
    if config.dialect == "openai":
        return _set(
            who,
            detail,
            {"extra_body": config.extra_body | {"reasoning_effort": "none"}},
            " (or this API's field that turns thinking off), or use a model that does not think",
            stops=True,
        )
    if "enable_thinking" in config.chat_template_kwargs:
        return Trouble(detail, "this model thinks regardless of its template: use its Instruct variant", stops=True)
    quiet = config.chat_template_kwargs | {"enable_thinking": False}
    also = " (or the variable of this model's template), or use its Instruct variant"
    return _set(who, detail, {"chat_template_kwargs": quiet}, also, stops=True)


def _unfinished(who: str, config: TeacherConfig, request: TeacherRequest) -> str:
    if request.key.endswith("/reason"):
        return f"raise {who}.sampling.max_tokens, or set {who}.grammar: bounded if the server has grammars"
    if config.judgements == "logprobs":
        return f"this model does not end after one word: set {who}.judgements: stated"
    return f"this model does not end after one line: use another {who}"


def _set(who: str, detail: str, sets: Mapping[str, Any], also: str = "", *, stops: bool = False) -> Trouble:
    named = {f"{who}.{key}": value for key, value in sets.items()}
    assignments = " and ".join(f"{key}: {_yaml(value)}" for key, value in named.items())
    return Trouble(detail, f"set {assignments}{also}", stops, named)


def _yaml(value: Any) -> str:
    """The value as written in a config."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(inner)}" for key, inner in value.items()) + "}"
    return value if isinstance(value, str) else json.dumps(value)
