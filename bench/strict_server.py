"""A chat endpoint that accepts only what OpenAI's API accepts, and otherwise fails as it does. Its answers are the oracle's, unguided.

Fields are those of OpenAI's chat completions reference; error messages are OpenAI's. `newest` stands for its reasoning models: no
`max_tokens`, no sampling parameters other than the defaults, no log-probabilities.
"""

from __future__ import annotations

import re
from typing import Any, Final

from bench import oracle_server
from bench.oracle_server import Refused, content_of
from pipeline.traces.families import FAMILIES, Family
from pipeline.traces.grammar import trace_grammar

_REFERENCE = """
audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens messages metadata modalities
model n parallel_tool_calls prediction presence_penalty prompt_cache_key reasoning_effort response_format safety_identifier seed
service_tier stop store stream stream_options temperature tool_choice tools top_logprobs top_p user verbosity web_search_options
"""
FIELDS: Final = frozenset(_REFERENCE.split())
_PARTS: Final = {"text": {"type", "text"}, "image_url": {"type", "image_url"}}


def answer(body: dict[str, Any], garbage: str = "", *, newest: bool = False) -> dict[str, Any]:
    """Answers a request. Raises Refused for what the API would not accept."""
    _refuse_unknown(body)
    if newest:
        _refuse_old(body)
    text = content_of(body)[0]
    labels = ("yes", "no") if re.search(r"\byes\b.*\bno\b", text) else ("complex", "simple")
    if re.search(r"(?m)^Assess:|^Verify:|^Answer with one word", text):
        guided = body | {"structured_outputs": {"choice": list(labels)}}
        found = oracle_server.answer(guided, garbage)
        return found if body.get("logprobs") else _stated(found)
    return oracle_server.answer(body | {"structured_outputs": {"grammar": trace_grammar(_family(text))}}, garbage)


def _refuse_unknown(body: dict[str, Any]) -> None:
    if unknown := sorted(body.keys() - FIELDS):
        raise Refused(f"Unrecognized request argument supplied: {unknown[0]}")
    for i, message in enumerate(body["messages"]):
        for j, part in enumerate(message["content"]):
            if beyond := sorted(part.keys() - _PARTS[part["type"]]):
                name = f"messages[{i}].content[{j}].{beyond[0]}"
                raise Refused(f"Unknown parameter: '{name}'.", name, "unknown_parameter")
            url = part["image_url"]["url"] if part["type"] == "image_url" else "data:"
            if not url.startswith(("data:", "https://", "http://")):
                name = f"messages[{i}].content[{j}].image_url.url"
                raise Refused(f"Invalid '{name}'. Expected a valid URL, but got a value with an invalid format.", name)
    if "top_logprobs" in body and not body.get("logprobs"):
        raise Refused("The 'logprobs' parameter must be set to true when 'top_logprobs' is used.", "top_logprobs")


def _refuse_old(body: dict[str, Any]) -> None:
    if "max_tokens" in body:
        message = "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        raise Refused(f"Unsupported parameter: {message}", "max_tokens", "unsupported_parameter")
    for name in ("temperature", "top_p"):
        if body.get(name, 1) != 1:
            message = f"'{name}' does not support {body[name]} with this model. Only the default (1) value is supported."
            raise Refused(f"Unsupported value: {message}", name, "unsupported_value")
    for name in ("logprobs", "presence_penalty", "frequency_penalty"):
        if name in body:
            raise Refused(f"Unsupported parameter: '{name}' is not supported with this model.", name, "unsupported_parameter")


def _family(text: str) -> Family:
    """Returns the task family of a prompt: the pocket set names it, the full set shows its lines."""
    if named := re.search(r"^Reason: (\w+)\.", text):
        return FAMILIES[named[1]]
    return next(
        family for family in FAMILIES.values() if all(f"\n{facet.label}: {facet.hint[:1]}" in text for facet in family.facets)
    )


def _stated(found: dict[str, Any]) -> dict[str, Any]:
    choice = found["choices"][0]
    first = choice["logprobs"]["content"][0]["top_logprobs"][0]["logprob"]
    choice["message"]["content"], choice["logprobs"] = f"confidence: {2.718281828**first:.2f}", None
    return found
