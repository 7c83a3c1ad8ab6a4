"""The oracle: a chat endpoint that answers every request instantly and deterministically, for tests of identity, speed and kills.

An answer is a function of the request's content only (a hash of the texts and image digests), so any two runs get the same
answers. It logs every request that it answers, so that a test can count what was asked twice. It never fails by itself; for
failures see `fault_server`.

    python -m bench.oracle_server PORT [--log FILE] [--delay SECONDS] [--garbage TEXT] [--refuse TEXT] [--kind KIND] [--die TEXT] [--key KEY]
        [--limit FILE]

Other kinds of server give the same answers in their own form: see `strict_server` and `thinking_server`. A preflight's requests are
not logged.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import math
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

KINDS = ("oracle", "strict", "strict-newest", "thinking-hidden", "thinking-first", "thinking-aloud")
PREFLIGHT = "preflight"
_FACET = re.compile(r'"([A-Z][a-z]+): "')
_WORDS = ("red", "blue", "green", "small", "large", "round", "square", "left")


def content_of(body: dict[str, Any]) -> tuple[str, str]:
    """Returns a request's (text, digest of texts, images and attempt)."""
    texts, digest = [], hashlib.sha256()
    for part in body["messages"][0]["content"]:
        said = part["text"] if part["type"] == "text" else part.get("uuid") or part["image_url"]["url"]
        digest.update(said.encode() + b"\0")
        if part["type"] == "text":
            texts.append(said)
    digest.update(str(body.get("seed")).encode())
    return "\n".join(texts), digest.hexdigest()


def answer(body: dict[str, Any], garbage: str = "") -> dict[str, Any]:
    text, digest = content_of(body)
    number = int(digest[:8], 16)
    logprobs = None
    if "choice" in body.get("structured_outputs", {}):
        labels = body["structured_outputs"]["choice"]
        share = (number % 1000 + 0.5) / 1000
        if labels[0] == "yes":
            share = 1 - share / 4  # most answers are supported
        said = labels[0] if share >= 0.5 else labels[1]

        logprobs = {
            "content": [
                {
                    "token": said,
                    "logprob": math.log(max(share, 1 - share)),
                    "top_logprobs": [
                        {"token": labels[0], "logprob": math.log(share)},
                        {"token": labels[1], "logprob": math.log(1 - share)},
                    ],
                }
            ]
        }
    else:
        queries = re.findall(r"^Query(?: text)?:(.*)$", text, re.MULTILINE)  # headings of the pocket and full prompt sets
        query = queries[-1].strip() if queries else ""
        words = [_WORDS[(number >> (2 * i)) % len(_WORDS)] for i in range(12)]
        labels = _FACET.findall(body.get("structured_outputs", {}).get("grammar", ""))
        lines = "\n".join(
            f"{label}: the {words[i]} {words[i + 1]} one of {digest[4 * i : 4 * i + 6]} is {words[i + 2]} and it has {words[i + 3]}"
            for i, label in enumerate(labels)
        )
        said = (
            f"<reasoning>\n{lines}\n</reasoning>\n<answer>{' '.join(words[:5])} {query[:60] or 'image'} {digest[:6]}</answer>"
        )
        if garbage and garbage in text:
            said = "I cannot do that"
    return {
        "model": "oracle",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop", "logprobs": logprobs}
        ],
        "usage": {"prompt_tokens": len(text) // 4, "completion_tokens": len(said) // 4},
    }


class Refused(Exception):
    """A request that this kind of server does not accept; answered with a 400 and this error."""

    def __init__(self, message: str, parameter: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.error = {"message": message, "type": "invalid_request_error", "param": parameter, "code": code}


def respond_as(kind: str) -> Callable[[dict[str, Any], str], dict[str, Any]]:
    """Returns the function that answers as this kind of server does, based on the oracle's answers."""
    if kind == "oracle":
        return answer
    from bench import strict_server, thinking_server

    if kind.startswith("strict"):
        return partial(strict_server.answer, newest=kind == "strict-newest")
    return partial(thinking_server.answer, kind=kind.removeprefix("thinking-"))


def application(
    log: Path | None = None,
    delay: float = 0.0,
    garbage: str = "",
    bodies: Path | None = None,
    refuse: str = "",
    *,
    kind: str = "oracle",
    root: str = "",
    die: str = "",
    deaths: Path | None = None,
    key: str = "",
    limit: Path | None = None,
) -> web.Application:
    respond = respond_as(kind)
    answered = 0
    file = log.open("a", buffering=1, encoding="utf-8") if log is not None else None
    kept = bodies.open("ab") if bodies is not None else None

    def at_limit() -> bool:
        most = limit.read_text(encoding="utf-8") if limit is not None and limit.exists() else ""
        return bool(most) and answered >= int(most)

    async def chat(request: web.Request) -> web.Response:
        nonlocal answered
        content = await request.read()
        body = orjson.loads(content)
        if kept is not None:
            kept.write(content + b"\n")
            kept.flush()
        if delay:
            await asyncio.sleep(delay)
        while at_limit():
            await asyncio.sleep(0.01)
        if die and die in content_of(body)[0]:
            if deaths is not None:
                with deaths.open("a", encoding="utf-8") as lines:
                    lines.write("died\n")
            os._exit(1)
        if refuse and refuse in content_of(body)[0]:
            return web.json_response({"error": {"message": "refused, as the test asks"}}, status=400)
        try:
            given = respond(body, garbage)
        except Refused as refused:
            return web.json_response({"error": refused.error}, status=400)
        if file is not None and PREFLIGHT not in request.headers.get(
            "User-Agent", ""
        ):  # before the answer is sent: a request that is not in the log was never answered
            file.write(content_of(body)[1] + "\n")
            answered += 1
        return web.Response(body=orjson.dumps(given), content_type="application/json")

    async def health(request: web.Request) -> web.Response:
        return web.Response()

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "oracle"} | ({"root": root} if root else {})]})

    @web.middleware
    async def keyed(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        if key and request.headers.get("Authorization") != f"Bearer {key}":
            return web.json_response({"error": {"message": "Incorrect API key provided"}}, status=401)
        found: web.StreamResponse = await handler(request)
        return found

    app = web.Application(client_max_size=2**28, middlewares=[keyed])
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/health", health)
    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--garbage", default="")
    parser.add_argument("--refuse", default="", help="requests that contain this text get a 400")
    parser.add_argument("--die", default="", help="a request that contains this text kills the server")
    parser.add_argument("--deaths", type=Path, help="a file that gets a line per death")
    parser.add_argument("--kind", default="oracle", choices=KINDS)
    parser.add_argument("--root", default="", help="the model's path that its list of models reports")
    parser.add_argument("--key", default="", help="requests without this key get a 401")
    parser.add_argument("--limit", type=Path, help="a file with the number of answers after which requests wait")
    parser.add_argument("--bodies", type=Path, help="a file for the bodies of all requests")
    given = parser.parse_args()
    own = {
        "kind": given.kind,
        "root": given.root,
        "die": given.die,
        "deaths": given.deaths,
        "key": given.key,
        "limit": given.limit,
    }
    web.run_app(
        application(given.log, given.delay, given.garbage, given.bodies, given.refuse, **own),
        host="127.0.0.1",
        port=given.port,
        access_log=None,
        print=None,
        backlog=4096,
    )


if __name__ == "__main__":
    from bench.oracle_server import main as imported  # the other kinds of server import this module by that name

    imported()
