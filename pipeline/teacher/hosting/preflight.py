"""Asks an endpoint whether it can do what a build needs, and tells all that it cannot at once."""

from __future__ import annotations

import base64
import io
from enum import StrEnum
from typing import Any, NamedTuple

import aiohttp
from PIL import Image

from pipeline.families import COMPOSED
from pipeline.grammar import trace_grammar
from pipeline.judge import VERIFY, choice_fields, judgement_from_logprobs
from pipeline.parse import parse_trace
from pipeline.teacher.client import TeacherClient
from pipeline.teacher.request import TeacherRequest
from schemas.config import TeacherConfig
from schemas.hosting import Endpoint
from schemas.judgement import Judgement
from schemas.teacher import TeacherAnswer, Transport
from schemas.trace import Trace


class Ability(StrEnum):
    REACHABLE = "reachable"
    MODEL = "model name"
    CHAT = "chat"
    IMAGES = "images"
    GRAMMAR = "grammar"
    LOGPROBS = "logprobs"


class Finding(NamedTuple):
    """One ability of one endpoint. `detail` and `remedy` are for what is missing."""

    endpoint: str
    ability: Ability
    ok: bool
    detail: str = ""
    remedy: str = ""


async def preflight(endpoint: Endpoint, config: TeacherConfig) -> list[Finding]:
    """Every ability that `config` needs, asked for with tiny requests."""
    names = await _served_names(endpoint)
    if isinstance(names, str):
        return [Finding(endpoint.url, Ability.REACHABLE, False, names, "start the server, or mend the URL in `endpoints`")]
    found = [Finding(endpoint.url, Ability.REACHABLE, True)]
    if endpoint.model not in names:
        served = ", ".join(names) or "nothing"
        return [
            *found,
            Finding(endpoint.url, Ability.MODEL, False, f"it serves {served}, not {endpoint.model}", "mend `model`"),
        ]
    found.append(Finding(endpoint.url, Ability.MODEL, True))
    transport = Transport(max_attempts=2, try_timeout_s=120, deadline_s=240)
    async with TeacherClient(transport.client((endpoint,))) as client:
        answer = await client.ask(_request("chat", "Say hello.", max_tokens=4))
        arrived = answer.ok or answer.finish_reason == "length"
        found.append(Finding(endpoint.url, Ability.CHAT, arrived, answer.detail, "see the server's log"))
        if not arrived:
            return found
        found.append(await _images(client, endpoint))
        if config.grammar:
            found.append(await _grammar(client, endpoint))
        if config.judgements == "logprobs":
            found.append(await _logprobs(client, endpoint))
    return found


async def _served_names(endpoint: Endpoint) -> list[str] | str:
    """Model names, or what went wrong."""
    client = TeacherClient(Transport().client((endpoint,)))  # reads the key, if there is one
    try:
        timeout = aiohttp.ClientTimeout(total=20)
        url, headers = f"{endpoint.url.rstrip('/')}/models", client.headers(endpoint)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url, headers=headers) as response:
            if response.status != 200:
                return f"HTTP {response.status} for the list of models"
            data = await response.json(content_type=None)
            return [str(model["id"]) for model in data["data"]]
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"
    except (ValueError, KeyError, TypeError):
        return "its list of models is not an OpenAI-compatible one"


def _request(key: str, text: str, *, image: str | None = None, **fields: Any) -> TeacherRequest:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": image}}] if image else []
    parts.append({"type": "text", "text": text})
    return TeacherRequest(key, [{"role": "user", "content": parts}], {"temperature": 0.0, **fields})


async def _images(client: TeacherClient, endpoint: Endpoint) -> Finding:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    answer = await client.ask(_request("image", "What colour is this?", image=url, max_tokens=4))
    arrived = answer.ok or answer.finish_reason == "length"
    return Finding(
        endpoint.url, Ability.IMAGES, arrived, answer.detail, "use a vision-language model, and allow 2 images per prompt"
    )


async def _grammar(client: TeacherClient, endpoint: Endpoint) -> Finding:
    grammar = trace_grammar(COMPOSED, max_facet_chars=24, max_answer_chars=24)
    answer = await client.ask(_request("grammar", "Describe.", max_tokens=256, structured_outputs={"grammar": grammar}))
    held = answer.ok and isinstance(parse_trace(answer.text, COMPOSED), Trace)
    detail = answer.detail or f"the answer did not keep to the grammar: {answer.text[:80]!r}"
    return Finding(
        endpoint.url, Ability.GRAMMAR, held, "" if held else detail, "set teacher.grammar: false; the parser still reads traces"
    )


async def _logprobs(client: TeacherClient, endpoint: Endpoint) -> Finding:
    answer: TeacherAnswer = await client.ask(
        TeacherRequest("logprobs", [{"role": "user", "content": "Is it?"}], choice_fields(VERIFY))
    )
    judged = judgement_from_logprobs(answer.first_token_logprobs, VERIFY)
    ok = answer.ok and isinstance(judged, Judgement)
    detail = answer.detail or (judged.detail if not isinstance(judged, Judgement) else "")
    return Finding(
        endpoint.url, Ability.LOGPROBS, ok, "" if ok else detail, "set teacher.judgements: stated (less well calibrated)"
    )
