from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

import pytest
from aiohttp import web

from pipeline.teacher.client import TeacherClient
from pipeline.teacher.request_body import TeacherRequest, request_body
from schemas.errors import ConfigError
from schemas.hosting import Endpoint
from schemas.teacher import ClientConfig, Outcome
from tests.pipeline.teacher.fault_server import FaultServer, completion, running

FAST: dict[str, Any] = {"backoff_s": 0.01, "backoff_cap_s": 0.05, "try_timeout_s": 2, "deadline_s": 20}


def client_of(*servers: FaultServer, **changes: Any) -> TeacherClient:
    endpoints = tuple(Endpoint(url=server.url, model="teacher") for server in servers)
    return TeacherClient(ClientConfig(endpoints=endpoints, **(FAST | changes)))


def request(key: str = "a", **fields: Any) -> TeacherRequest:
    return TeacherRequest(key, [{"role": "user", "content": key}], fields)


async def ask_all(client: TeacherClient, count: int) -> list[Any]:
    return await asyncio.gather(*(client.ask(request(str(n))) for n in range(count)))


async def test_an_answer_has_all_fields() -> None:
    async with running() as server, client_of(server) as client:
        answer = await client.ask(request("hello", temperature=0.5))
        assert (answer.key, answer.text, answer.outcome) == ("hello", "hello", Outcome.OK)
        assert (answer.prompt_tokens, answer.completion_tokens, answer.attempts) == (11, 3, 1)
        assert (answer.model, answer.fingerprint, answer.endpoint) == ("teacher-as-served", "fp", server.url)
        assert 0 < answer.latency_s <= answer.total_s
        assert server.bodies == [{"model": "teacher", "messages": [{"role": "user", "content": "hello"}], "temperature": 0.5}]


def test_the_same_request_gives_the_same_bytes() -> None:
    one = TeacherRequest("x", [{"role": "user", "content": "é"}], {"a": 1, "b": {"d": 1, "c": 2}})
    other = TeacherRequest("y", [{"content": "é", "role": "user"}], {"b": {"c": 2, "d": 1}, "a": 1})
    assert request_body(one, "m") == request_body(other, "m")
    assert request_body(one, "m") != request_body(one, "n")


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
async def test_transient_failures_are_retried(status: int) -> None:
    async def fault(_: web.Request, number: int) -> web.Response | None:
        return web.Response(status=status) if number < 2 else None

    async with running() as server, client_of(server) as client:
        server.fault = fault
        answer = await client.ask(request())
        assert (answer.outcome, answer.attempts, server.asked) == (Outcome.OK, 3, 3)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
async def test_other_4xx_are_permanent(status: int) -> None:
    async def fault(_: web.Request, number: int) -> web.Response:
        return web.Response(status=status, text="the prompt is too long")

    async with running() as server, client_of(server) as client:
        server.fault = fault
        answer = await client.ask(request())
        assert (answer.outcome, server.asked) == (Outcome.PERMANENT_HTTP, 1)
        assert answer.detail == f"HTTP {status}: the prompt is too long"


async def test_retries_end_with_the_cause() -> None:
    async def fault(_: web.Request, number: int) -> web.Response:
        return web.Response(status=500, text="boom")

    async with running() as server, client_of(server, max_attempts=3) as client:
        server.fault = fault
        answer = await client.ask(request())
        assert (answer.outcome, answer.attempts, server.asked) == (Outcome.EXHAUSTED_RETRIES, 3, 3)
        assert answer.detail == "after 3 attempts: HTTP 500: boom"


async def test_a_truncated_answer_is_invalid() -> None:
    async def fault(_: web.Request, number: int) -> web.Response:
        return web.json_response(completion("half an ans", "length"))

    async with running() as server, client_of(server) as client:
        server.fault = fault
        answer = await client.ask(request())
        assert (answer.outcome, answer.text, answer.finish_reason) == (Outcome.INVALID_FINISH, "half an ans", "length")
        assert answer.completion_tokens == 3


def odd(**changes: object) -> str:
    choice = {"message": {"content": "fine"}, "finish_reason": changes.pop("finish_reason", "stop")}
    return json.dumps({"choices": [choice], **changes})


@pytest.mark.parametrize(
    "body",
    [
        *("<html>", "{}", '{"choices": []}', '{"choices": [{"message": {"content": 5}}]}', "[]", "", '"x"', '{"choices": 1}'),
        # values that the ledger's columns could not hold
        odd(finish_reason={"type": "stop"}),
        odd(system_fingerprint=7),
        odd(usage={"prompt_tokens": -1}),
        odd(usage={"completion_tokens": 1 << 40}),
        odd(usage={"prompt_tokens": "many"}),
    ],
)
async def test_valid_http_with_malformed_completions(body: str) -> None:
    async def fault(_: web.Request, number: int) -> web.Response:
        return web.Response(status=200, text=body, content_type="text/html")

    async with running() as server, client_of(server, max_attempts=2) as client:
        server.fault = fault
        answer = await client.ask(request())
        assert (answer.outcome, answer.attempts) == (Outcome.MALFORMED_COMPLETION, 2)
        assert "the body is no" in answer.detail


async def test_slow_bodies_hit_the_timeout_of_a_try() -> None:
    async def fault(asked: web.Request, number: int) -> web.StreamResponse | None:
        if number:
            return None
        response = web.StreamResponse()
        await response.prepare(asked)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.02)

    async with running() as server, client_of(server, try_timeout_s=0.3) as client:
        server.fault = fault
        answer = await client.ask(request())
        assert (answer.outcome, answer.attempts) == (Outcome.OK, 2)
        assert answer.total_s >= 0.3


async def test_truncated_bodies_and_resets_are_retried() -> None:
    async def fault(asked: web.Request, number: int) -> web.StreamResponse | None:
        if number > 1:
            return None
        if number == 1:
            assert asked.transport is not None
            asked.transport.abort()
            return web.Response()
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(asked)
        await response.write(b'{"choices"')
        assert asked.transport is not None
        asked.transport.close()
        return response

    async with running() as server, client_of(server) as client:
        server.fault = fault
        answer = await client.ask(request())
        assert (answer.outcome, answer.attempts) == (Outcome.OK, 3)


async def test_the_deadline_covers_everything() -> None:
    async def fault(_: web.Request, number: int) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async with running() as server, client_of(server, deadline_s=0.3, try_timeout_s=30) as client:
        server.fault = fault
        began = time.monotonic()
        answer = await client.ask(request())
        assert answer.outcome is Outcome.DEADLINE
        assert time.monotonic() - began < 2
        assert client.stats().in_flight == 0


async def test_a_server_that_dies_and_comes_back_loses_nothing() -> None:
    async with running() as server, client_of(server, max_attempts=50) as client:
        server.delay_s = 0.05
        asking = asyncio.create_task(ask_all(client, 120))
        await asyncio.sleep(0.12)
        await server.stop()
        await asyncio.sleep(0.3)
        await server.start()
        answers = await asking
        assert {answer.outcome for answer in answers} == {Outcome.OK}
        assert [answer.text for answer in answers] == [str(n) for n in range(120)]
        assert any(answer.attempts > 1 for answer in answers)


async def test_the_share_of_failures_is_of_the_last_window() -> None:
    async def fault(_: web.Request, number: int) -> web.Response | None:
        return web.Response(status=400) if number < 10 else None

    async with running() as server, client_of(server, window=20, start_in_flight=1, max_in_flight=1) as client:
        server.fault = fault
        await ask_all(client, 9)
        assert client.failure_share() == 0.0  # too few to say
        await ask_all(client, 3)
        assert client.failure_share() == pytest.approx(10 / 12)
        await ask_all(client, 30)
        assert client.failure_share() == 0.0


async def test_api_keys_appear_nowhere(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async def fault(asked: web.Request, number: int) -> web.Response:
        return web.Response(status=(500, 400)[number], text=f"your key {asked.headers['Authorization']} is no good")

    monkeypatch.setenv("SOME_KEY", "sk-very-secret")
    with caplog.at_level(logging.DEBUG):
        async with running() as server:
            endpoint = Endpoint(url=server.url, model="teacher", api_key_env="SOME_KEY")
            config = ClientConfig(endpoints=(endpoint,), **FAST)
            async with TeacherClient(config) as client:
                server.fault = fault
                answer = await client.ask(request())
                assert server.authorization == {"Bearer sk-very-secret"}
                everything = f"{answer!r} {answer.model_dump_json()} {config!r} {client!r} {client.__dict__} {caplog.text}"
                assert "very-secret" not in everything
                assert "[key]" in answer.detail


@pytest.mark.parametrize("status", [200, 400])
async def test_a_truncated_message_contains_no_part_of_a_key(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-very-secret\n")  # key files end with a line break
    seen = set()
    async with running() as server:
        endpoint = Endpoint(url=server.url, model="teacher", api_key_env="SOME_KEY")
        async with TeacherClient(ClientConfig(endpoints=(endpoint,), **(FAST | {"max_attempts": 1}))) as client:
            for padding in range(60, 310, 5):

                async def fault(_: web.Request, number: int, padding: int = padding) -> web.Response:
                    return web.Response(status=status, text="x" * padding + "sk-very-secret")

                server.fault = fault
                answer = await client.ask(request())
                seen.add(answer.outcome)
                assert "sk-v" not in answer.detail
    assert seen == {Outcome.MALFORMED_COMPLETION if status == 200 else Outcome.PERMANENT_HTTP}


def test_a_missing_api_key_is_an_immediate_error() -> None:
    endpoint = Endpoint(url="http://127.0.0.1:1/v1", model="m", api_key_env="NOT_SET_ANYWHERE")
    with pytest.raises(ConfigError, match="NOT_SET_ANYWHERE is not set"):
        TeacherClient(ClientConfig(endpoints=(endpoint,)))
