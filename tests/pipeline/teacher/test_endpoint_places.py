"""When requests may be sent and to which endpoint: in order, fewer to a slow endpoint, none after a refusal."""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from pipeline.teacher.client import TeacherClient
from pipeline.teacher.concurrency_limit import Limiter
from pipeline.teacher.request_body import TeacherRequest
from schemas.hosting import Endpoint
from schemas.teacher import Outcome, Transport
from tests.pipeline.teacher.fault_server import running
from tests.pipeline.teacher.test_client import ask_all, client_of, request


async def test_a_request_at_the_moment_a_pause_ends_wakes_all_waiting_requests() -> None:
    """The request comes after that moment but before the timer runs: the timer must survive, as nothing in flight frees places."""
    async with running() as server, client_of(server) as client:
        client._places.servers[0].limiter.unreachable()
        early = asyncio.create_task(client.ask(request("early")))
        await asyncio.sleep(0.05)
        assert not early.done()
        time.sleep(0.4)  # a busy loop: the timer is due but has not run
        late = asyncio.create_task(client.ask(request("late")))
        async with asyncio.timeout(10):
            assert [answer.outcome for answer in await asyncio.gather(early, late)] == [Outcome.OK, Outcome.OK]


async def test_another_endpoint_takes_over() -> None:
    async with running() as dying, running() as living, client_of(dying, living) as client:
        dying.delay_s = living.delay_s = 0.02
        asking = asyncio.create_task(ask_all(client, 200))
        while client.stats().answered < 20:  # both have started
            await asyncio.sleep(0.005)
        await dying.stop()
        answers = await asking
        assert {answer.outcome for answer in answers} == {Outcome.OK}
        assert {answer.endpoint for answer in answers} == {dying.url, living.url}


async def test_the_slower_endpoint_gets_less() -> None:
    async with running() as quick, running() as slow, client_of(quick, slow, start_in_flight=8, max_in_flight=8) as client:
        quick.delay_s, slow.delay_s = 0.005, 0.1
        await ask_all(client, 300)
        assert quick.asked > 3 * slow.asked


async def test_the_limit_shrinks_on_refusals_and_every_request_is_answered() -> None:
    async with running() as server, client_of(server, start_in_flight=64, max_attempts=200) as client:
        server.capacity, server.delay_s = 4, 0.01
        answers = await ask_all(client, 300)
        assert {answer.outcome for answer in answers} == {Outcome.OK}
        assert client.stats().limit <= 16
        assert sorted(map(int, server.answered)) == list(range(300))


async def test_the_limit_grows_while_the_server_keeps_up() -> None:
    async with running() as server, client_of(server, start_in_flight=2, max_in_flight=32) as client:
        server.delay_s = 0.005
        await ask_all(client, 600)
        assert 16 <= client.stats().limit <= 32
        assert server.most_in_flight <= 32


async def test_retry_after_is_honoured() -> None:
    async def fault(_: web.Request, number: int) -> web.Response | None:
        return web.Response(status=429, headers={"Retry-After": "0.4"}) if number == 0 else None

    async with running() as server, client_of(server) as client:
        server.fault = fault
        answer = await client.ask(request())
        assert answer.ok
        assert answer.total_s >= 0.4


async def test_requests_wait_in_order() -> None:
    async with running() as server, client_of(server, start_in_flight=1, max_in_flight=1) as client:
        server.delay_s = 0.002
        await ask_all(client, 50)
        assert server.answered == [str(n) for n in range(50)]


async def test_a_cancelled_request_frees_its_place() -> None:
    async with running() as server, client_of(server, start_in_flight=2, max_in_flight=2) as client:
        server.delay_s = 0.3
        tasks = [asyncio.create_task(client.ask(request(str(n)))) for n in range(6)]
        await asyncio.sleep(0.05)
        for task in tasks[:2] + tasks[3:5]:
            task.cancel()
        assert (await tasks[2]).ok
        assert (await tasks[5]).ok
        assert client.stats()[:2] == (0, 0)


def test_the_refusals_of_one_round_trip_halve_the_limit_once() -> None:
    limiter = Limiter(64.0, 1, 512, latency=10.0)
    for _ in range(40):
        limiter.congested()
    assert limiter.limit == 32.0


async def test_after_a_refusal_nothing_is_sent_and_requests_in_flight_are_completed() -> None:
    async with running() as server:
        server.delay_s = 0.2
        config = Transport(start_in_flight=4, max_in_flight=4).client((Endpoint(url=server.url, model="m"),))
        async with TeacherClient(config) as client:
            asked = [
                asyncio.create_task(client.ask(TeacherRequest(str(n), [{"role": "user", "content": "x"}]))) for n in range(20)
            ]
            await asyncio.sleep(0.1)
            client.stop_sending(RuntimeError("enough"))
            found = await asyncio.gather(*asked, return_exceptions=True)
        assert server.asked == 4
        assert sum(not isinstance(one, BaseException) and one.ok for one in found) == 4
        assert sum(isinstance(one, RuntimeError) for one in found) == 16
