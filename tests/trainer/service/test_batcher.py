"""Batches, the line before them and what is refused, with an engine whose pace the test sets."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any, cast

import numpy as np
import pytest

from schemas.errors import CotError
from schemas.service import ServiceLimits, ServiceSettings
from trainer.service.batcher import Admission, Batcher, Unavailable
from trainer.service.engine_loop import EngineFacts, EngineLost, Outcome, Work
from trainer.service.engine_process import EngineProcess
from trainer.service.metrics import ServiceMetrics
from trainer.service.protocol import Embedded


class PacedEngine:
    """Answers when `go` is set. `lose`: how many of the next batches end it."""

    pid = 1

    def __init__(self, room: int | None) -> None:
        self.batches: list[list[str]] = []
        self.dropped: list[str] = []
        self.go, self.died = asyncio.Event(), asyncio.Event()
        self.released: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.lose = self.starts = 0
        self.facts = EngineFacts(1, None, room)

    @property
    def alive(self) -> bool:
        return not self.died.is_set()

    def release(self, content: str) -> None:
        """Answers this one."""
        self.released[content].set()

    async def start(self) -> None:
        self.starts += 1
        self.died.clear()

    async def embed(self, works: list[Work]) -> list[Outcome]:
        self.batches.append([work.content for work in works])
        events = [asyncio.ensure_future(event.wait()) for event in (self.go, self.released[works[0].content])]
        try:
            await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.dropped += [work.content for work in works]
            raise
        if self.lose:
            self.lose -= 1
            self.died.set()
            raise EngineLost("the engine has ended")
        return [Embedded(np.array([float(work.content)], np.float32), 1) for work in works]


def settings(**given: Any) -> ServiceSettings:
    return ServiceSettings(name="m", batch_size=4, batch_wait_ms=1, limits=ServiceLimits(waiting=10, waiting_mib=1), **given)


class Started:
    """A batcher that runs."""

    def __init__(self, room: int | None = None, **given: Any) -> None:
        self.engine = PacedEngine(room)
        self.admission = Admission(settings().limits, 60)
        self.metrics = ServiceMetrics()
        self.batcher = Batcher(cast(EngineProcess, self.engine), settings(**given), self.admission, self.metrics)
        self.running = asyncio.ensure_future(self.batcher.run())

    def ask(self, *numbers: int, route: Any = "learned") -> asyncio.Future[list[Outcome]]:
        return asyncio.ensure_future(self.batcher.embed([Work(str(number), "", route) for number in numbers]))


def values(outcomes: list[Outcome]) -> list[float]:
    return [float(one.vector[0]) for one in outcomes if isinstance(one, Embedded)]


async def test_batches_grow_while_the_engine_is_busy_and_hold_one_route() -> None:
    service = Started()
    first = service.ask(0)
    await asyncio.sleep(0.02)
    others = [service.ask(1), service.ask(2, 3, route=None), service.ask(4), service.ask(5, 6, 7)]
    await asyncio.sleep(0.02)
    assert service.engine.batches == [["0"]]
    service.engine.go.set()
    assert values(await first) == [0]
    assert [values(await one) for one in others] == [[1], [2, 3], [4], [5, 6, 7]]
    assert service.engine.batches[1:] == [
        ["1", "4", "5", "6"], ["2", "3"], ["7"]
    ]  # fmt: skip
    service.running.cancel()


async def test_an_idle_engine_waits_a_moment_for_more() -> None:
    service = Started()
    service.engine.go.set()
    await asyncio.gather(service.ask(0), service.ask(1), service.ask(2))
    assert service.engine.batches == [["0", "1", "2"]]
    service.running.cancel()


async def test_an_engine_with_room_is_given_single_inputs_of_any_kind_and_each_is_answered_when_it_is_done() -> None:
    service = Started(room=3)
    first = [service.ask(0), service.ask(1, route=None), service.ask(2, 3)]
    await asyncio.sleep(0.02)
    assert service.engine.batches == [["0"], ["1"], ["2"]], "no more than it has room for"
    service.engine.release("1")
    assert values(await first[1]) == [1]
    await asyncio.sleep(0.01)
    assert service.engine.batches[3:] == [["3"]]
    assert not first[0].done()
    service.engine.go.set()
    assert [values(await one) for one in first] == [[0], [1], [2, 3]]
    service.running.cancel()


async def test_a_lost_engine_with_room_answers_every_accepted_input_with_an_error_and_is_started_again() -> None:
    service = Started(room=3)
    service.engine.lose = 3
    asked = [service.ask(number) for number in range(8)]
    await asyncio.sleep(0.02)
    service.engine.go.set()
    ended = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(one) for one in ended] == [Unavailable] * 8
    assert values(await service.ask(9)) == [9]
    assert (service.engine.starts, len(service.engine.batches)) == (1, 4)
    service.running.cancel()


async def test_inputs_of_a_client_that_has_gone_are_not_embedded() -> None:
    service = Started()
    first = service.ask(0)
    await asyncio.sleep(0.02)
    gone, stays = service.ask(1, 2), service.ask(3)
    await asyncio.sleep(0.01)
    gone.cancel()
    service.engine.go.set()
    assert values(await first) + values(await stays) == [0, 3]
    assert service.engine.batches == [["0"], ["3"]]
    service.running.cancel()


async def test_an_engine_with_room_stops_to_embed_inputs_of_a_client_that_has_gone() -> None:
    service = Started(room=2)
    gone, stays = service.ask(0, 1, 2), service.ask(3)
    await asyncio.sleep(0.02)
    assert service.engine.batches == [["0"], ["1"]]
    gone.cancel()
    await asyncio.sleep(0.02)
    assert service.engine.dropped == ["0", "1"]
    assert service.engine.batches[2:] == [["3"]], "their places are free, and what had not begun is not begun"
    service.engine.go.set()
    assert values(await stays) == [3]
    service.engine.lose = 1
    assert isinstance((await asyncio.gather(service.ask(4), return_exceptions=True))[0], Unavailable)
    assert values(await service.ask(5)) == [5], "what was dropped does not hinder the next start"
    service.running.cancel()


async def test_a_lost_engine_answers_every_accepted_input_with_an_error_and_is_started_again() -> None:
    service = Started()
    service.engine.lose = 1
    asked = [service.ask(number) for number in range(8)]
    await asyncio.sleep(0.02)
    service.engine.go.set()
    ended = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(one) for one in ended] == [Unavailable] * 8
    assert {cast(Unavailable, one).status for one in ended} == {503}
    assert values(await service.ask(9)) == [9]
    assert service.engine.starts == 1
    assert b"mbeir_cot_engine_restarts_total 1.0" in service.metrics.render()
    service.running.cancel()


async def test_an_engine_that_dies_while_it_is_idle_is_started_again() -> None:
    service = Started()
    service.engine.go.set()
    await asyncio.sleep(0.01)
    service.engine.died.set()
    with pytest.raises(Unavailable, match="the engine is starting"):
        service.batcher.check()
    await asyncio.sleep(0.01)
    assert values(await service.ask(1)) == [1]
    service.running.cancel()


async def test_an_engine_that_never_answers_is_given_up() -> None:
    service = Started()
    service.engine.lose = 100
    service.engine.go.set()
    for number in range(3):
        with pytest.raises(Unavailable):
            await service.ask(number)
        await asyncio.sleep(0.01)
    with pytest.raises(EngineLost, match="3 times without answering"):
        await service.running
    assert service.engine.starts == 2


async def test_what_is_left_at_the_end_of_the_drain_gets_an_error() -> None:
    service = Started()
    asked = [service.ask(number) for number in range(6)]
    await asyncio.sleep(0.02)
    service.batcher.draining = True
    with pytest.raises(Unavailable, match="stopping"):
        await service.batcher.embed([])
    service.batcher.fail_all("stopping", "the service has stopped", 5)
    assert {type(one) for one in await asyncio.gather(*asked, return_exceptions=True)} == {Unavailable}
    service.running.cancel()


def test_what_is_held_is_counted_and_released() -> None:
    admission = Admission(settings().limits, 60)
    with admission.hold() as one:
        one.take(inputs=6, size=600_000)
        with admission.hold() as two:
            two.take(inputs=4)
            for more in ({"inputs": 1}, {"size": 600_000}):
                with pytest.raises(Unavailable) as caught:
                    two.take(**more)
                assert caught.value.status == 429
                assert 1 <= caught.value.retry_after_s <= 60
        assert (admission.waiting, admission.bytes) == (6, 600_000)
        with pytest.raises(CotError), admission.hold() as three:
            three.take(inputs=5)
    assert (admission.waiting, admission.bytes) == (0, 0)


def test_what_would_be_answered_too_late_is_refused_at_once() -> None:
    admission = Admission(settings().limits, 2.0)
    admission.note_answered(2, 1.0)
    with admission.hold() as one:
        one.take(inputs=4)  # nothing waits: it is tried, whatever the rate
        with pytest.raises(Unavailable):
            admission.check(1, 0)
        assert admission.retry_after_s() == 1.0
