"""A server's own metrics limit what is sent to it."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from pipeline.teacher.concurrency_limit import Limiter
from pipeline.teacher.server_load import ServerLoad, metrics_url, read_load
from schemas.teacher import Outcome
from tests.pipeline.teacher.fault_server import running
from tests.pipeline.teacher.test_client import ask_all, client_of

METRICS = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="t"} 3.0
vllm:num_requests_running{engine="1",model_name="t"} 4.0
vllm:num_requests_waiting{engine="0",model_name="t"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="t"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="t"} 0.75
vllm:num_preemptions_total{engine="0",model_name="t"} 1.0
vllm:num_preemptions_created{engine="0",model_name="t"} 1.7e9
"""


def test_vllms_metrics_are_read_over_all_engines() -> None:
    assert read_load(METRICS) == ServerLoad(7, 2, 0.75, 1)
    assert read_load("# TYPE python_gc counter\npython_gc 3") is None
    assert read_load("") is None


@pytest.mark.parametrize(
    ("url", "metrics"),
    [
        ("http://a:8000/v1", "http://a:8000/metrics"),
        ("http://a/v1/", "http://a/metrics"),
        ("https://a/teacher/v1", "https://a/teacher/metrics"),
    ],
)
def test_metrics_are_beside_the_version(url: str, metrics: str) -> None:
    assert metrics_url(url) == metrics


def limiter(**given: float) -> Limiter:
    return Limiter(limit=given.get("limit", 8.0), least=1, most=100)


def grow(one: Limiter, successes: int) -> None:
    for _ in range(successes):
        one.in_flight = int(one.limit)
        one.succeeded(0.1)


def test_the_limit_does_not_grow_while_requests_wait_or_the_cache_is_nearly_full() -> None:
    for load in ((8, 1, 0.5, 0), (8, 0, 0.95, 0)):
        one = limiter()
        one.reported(*load)
        grow(one, 20)
        assert one.limit == 8
        one.reported(8, 0, 0.5, 0)
        grow(one, 20)
        assert one.limit == 28


def test_preemptions_bring_the_limit_down_to_what_runs() -> None:
    one = limiter(limit=64)
    one.reported(40, 0, 0.99, 7)  # of an earlier client
    assert one.limit == 64
    one.in_flight = 64
    one.reported(30, 34, 0.99, 9)
    assert one.limit == 32, "at most halved: what runs at a moment may be few"
    one.in_flight = 32
    one.reported(30, 2, 0.99, 10)
    assert one.limit == 30
    one.reported(30, 0, 0.99, 10)
    assert one.limit == 30, "nothing was preempted since"
    one.reported(0, 30, 0.0, 12)
    assert one.limit == 15
    one.reported(1, 0, 0.0, 0)  # the server was started again
    grow(one, 3)
    assert 15 < one.limit < 18, "it grows slowly from now on"


def test_after_a_preemption_the_limit_follows_the_cache() -> None:
    one = limiter(limit=30)
    one.in_flight = 30
    one.reported(30, 0, 0.5, 0)
    assert one.limit == 30, "before a preemption it doubles by round trips"
    one.reported(20, 10, 0.99, 1)
    assert one.limit == 20
    one.in_flight = 20
    one.reported(20, 0, 0.45, 1)
    assert one.limit == 30, "half the way to 40, at which the cache is 90% full"
    one.reported(20, 0, 0.45, 1)
    assert one.limit == 30, "the limit is not used, so what is running is not what it allows"
    one.in_flight = 30
    one.reported(30, 0, 0.85, 1)
    assert 30 < one.limit < 31
    one.reported(30, 0, 0.0001, 1)
    assert one.limit == 100, "the most"


def test_several_clients_of_a_server_take_their_shares() -> None:
    four = [limiter(limit=30) for _ in range(4)]
    for one in four:
        one.in_flight = 30
        one.reported(0, 0, 0.0, 0)
        one.reported(80, 40, 0.99, 1)
        assert one.limit == 20
        one.in_flight = 20
        one.reported(80, 0, 0.6, 1)
        assert one.limit == 25, "half the way to 30, which is a fourth of the 120 that fill the cache"
    idle = limiter(limit=30)
    idle.reported(0, 0, 0.0, 0)
    idle.reported(80, 40, 0.99, 1)
    idle.reported(80, 0, 0.3, 1)
    assert idle.limit == 15, "it asks for nothing, so the cache says nothing about it"


def test_room_in_the_cache_does_not_undo_a_refusal() -> None:
    one = limiter(limit=64)
    one.in_flight = 64
    one.congested()
    one.in_flight = 32
    one.reported(32, 0, 0.05, 0)
    assert one.limit == 32, "nothing was preempted"
    one.reported(32, 0, 0.99, 1)
    one.congested()
    one.reported(32, 0, 0.05, 1)
    assert one.limit == 32, "just refused"


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200), st.floats(0, 1), st.integers(0, 50)), max_size=20))
def test_the_limit_stays_within_its_bounds(loads: list[tuple[int, int, float, int]]) -> None:
    one = limiter()
    for load in loads:
        one.reported(*load)
        grow(one, 5)
        assert 1 <= one.limit <= 100


@pytest.mark.slow
async def test_a_server_that_preempts_gets_fewer_requests_at_once() -> None:
    """A server that preempts with more than 4 requests in flight, and says so."""
    preempted = 0

    async def metrics(_: web.Request) -> web.Response:
        nonlocal preempted
        preempted += server.in_flight > 4
        return web.Response(
            text=f"vllm:num_requests_running 4.0\nvllm:kv_cache_usage_perc 0.5\nvllm:num_preemptions_total {preempted}.0\n"
        )

    async with running(metrics=metrics) as server, client_of(server, start_in_flight=64, load_poll_s=0.02) as client:
        server.delay_s = 0.2  # many polls in a round trip, on a busy machine too
        answers = await ask_all(client, 300)
        assert {answer.outcome for answer in answers} == {Outcome.OK}
        assert client.stats().limit <= 24  # of 64


async def test_a_server_without_metrics_is_asked_for_them_once() -> None:
    asked = 0

    async def metrics(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=404)

    async with running(metrics=metrics) as server, client_of(server, load_poll_s=0.01) as client:
        server.delay_s = 0.05
        answers = await ask_all(client, 64)
        await asyncio.sleep(0.05)
        assert {answer.outcome for answer in answers} == {Outcome.OK}
        assert asked == 1
