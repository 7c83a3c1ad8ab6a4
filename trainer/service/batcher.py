"""Accepted inputs in batches for the engine, and how many may be accepted.

Inputs wait in one line. Whenever the engine is free it takes the next `batch_size` of the same kind (candidates, or queries
with the same route), so batches grow with the load. An engine that embeds inputs side by side (vLLM) takes each one as soon as
it has room, answers it when it is done, and drops it when its client has gone. If the engine dies, every accepted input gets an
error at once: whether to ask again is the client's decision, who may have another server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from schemas.errors import CotError
from schemas.service import ServiceLimits, ServiceSettings
from trainer.service.engine_loop import EngineLost, Outcome, Work
from trainer.service.engine_process import EngineProcess
from trainer.service.metrics import ServiceMetrics

logger = logging.getLogger(__name__)

_STARTS: Final = 3
"""Starts in a row without an answered batch, after which the service gives up."""


class Unavailable(CotError):
    """The service does not take or finish this request now, but may later. `status`: of HTTP."""

    def __init__(self, status: int, problem: str, retry_after_s: float, reason: str) -> None:
        super().__init__(problem, f"send it again in {retry_after_s:.0f} s")
        self.status, self.retry_after_s, self.reason = status, retry_after_s, reason


class Admission:
    """Counts what accepted requests hold: inputs, and bytes of bodies and images."""

    def __init__(self, limits: ServiceLimits, timeout_s: float) -> None:
        self._most, self._most_bytes = limits.waiting, int(limits.waiting_mib * 2**20)
        self._timeout_s = timeout_s
        self.waiting = self.bytes = 0
        self.rate = 0.0
        """Inputs per second while the engine was full; 0 before it was."""

    @contextlib.contextmanager
    def hold(self) -> Iterator[Held]:
        """What one request holds is released at its end, however that comes."""
        held = Held(self)
        try:
            yield held
        finally:
            self.waiting -= held.inputs
            self.bytes -= held.bytes

    def retry_after_s(self) -> float:
        """When about half of what waits will be answered: 1 to 60 s."""
        return min(max(self.waiting / (2 * self.rate) if self.rate else 1.0, 1.0), 60.0)

    def check(self, inputs: int, size: int) -> None:
        """Raises Unavailable (429) if so much more is too much, or would be answered too late."""
        late = self.rate > 0 and self.waiting > 0 and (self.waiting + inputs) / self.rate > self._timeout_s
        if self.waiting + inputs > self._most or late:
            raise Unavailable(429, f"{self.waiting:,} inputs are waiting", self.retry_after_s(), "inputs")
        if self.bytes + size > self._most_bytes:
            raise Unavailable(429, "too much is waiting in memory", self.retry_after_s(), "memory")

    def note_answered(self, inputs: int, seconds: float) -> None:
        now = inputs / max(seconds, 1e-6)
        self.rate = now if not self.rate else 0.8 * self.rate + 0.2 * now


class Held:
    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.inputs = self.bytes = 0

    def take(self, *, inputs: int = 0, size: int = 0) -> None:
        """Raises Unavailable (429) if there is no room."""
        self._admission.check(inputs, size)
        self.inputs += inputs
        self.bytes += size
        self._admission.waiting += inputs
        self._admission.bytes += size


@dataclass(slots=True, eq=False)
class _Waiting:
    work: Work
    outcome: asyncio.Future[Outcome]
    since: float
    alone: asyncio.Future[None] | None = None
    """Its embedding, if the engine has it as a batch of its own."""


class Batcher:
    """Feeds the engine, and starts it again when it dies."""

    def __init__(self, engine: EngineProcess, settings: ServiceSettings, admission: Admission, metrics: ServiceMetrics) -> None:
        self._engine, self._settings, self._admission, self._metrics = engine, settings, admission, metrics
        self._line: deque[_Waiting] = deque()
        self._embedding: set[_Waiting] = set()
        self._running: set[asyncio.Future[None]] = set()
        """Batches that the engine has; with an engine that has room, of one input each."""
        self._lost: EngineLost | None = None
        self._starts = 1
        """In a row, without an answered batch."""
        self._full_since, self._answered = 0.0, 0
        """Since when the line was never empty, and what was answered since."""
        self._arrived = asyncio.Event()
        self.draining = False

    def check(self) -> None:
        """Raises Unavailable (503) if nothing can be accepted now."""
        if self.draining:
            raise Unavailable(503, "the service is stopping", 5.0, "stopping")
        if not self._engine.alive:
            raise Unavailable(503, "the engine is starting", 5.0, "engine")

    async def embed(self, works: Sequence[Work]) -> list[Outcome]:
        """Outcomes in order. Raises Unavailable (503) if the engine is lost meanwhile. Cancelling it frees its places."""
        self.check()
        loop, now = asyncio.get_running_loop(), time.perf_counter()
        waiting = [_Waiting(work, loop.create_future(), now) for work in works]
        self._line.extend(waiting)
        self._arrived.set()
        try:
            return list(await asyncio.gather(*(one.outcome for one in waiting)))
        finally:
            for one in waiting:
                one.outcome.cancel()
                if not one.outcome.cancelled():
                    one.outcome.exception()  # seen: a neighbour's was raised
                elif one.alone is not None:
                    one.alone.cancel()  # its client has gone

    def fail_all(self, reason: str, problem: str, retry_after_s: float) -> None:
        """Answers everything accepted with 503."""
        for one in (*self._embedding, *self._line):
            if not one.outcome.done():
                one.outcome.set_exception(Unavailable(503, problem, retry_after_s, reason))
        self._line.clear()
        self._embedding.clear()

    async def run(self) -> None:
        """Until it is cancelled. Raises EngineLost if the engine cannot be kept running."""
        while True:
            try:
                await self._next_batch()
                continue
            except EngineLost as error:
                logger.error("%s; %d accepted inputs are answered with 503", error.problem, self._admission.waiting)  # noqa: TRY400
            self.fail_all("engine", "the engine has ended while this was embedded", 5.0)
            if self._running:
                await asyncio.wait(self._running)
            if self._starts >= _STARTS:
                raise EngineLost(
                    f"the engine ended {self._starts} times without answering a batch",
                    "see the log; a lower --batch-size (with vLLM adaptive.decode_rows) saves memory",
                )
            self._starts += 1
            self._lost = None
            self._metrics.restarts.inc()
            await self._engine.start()
            logger.info("running again, engine %s", self._engine.pid)

    async def _next_batch(self) -> None:
        """Waits for inputs and for room, and has a batch embedded. Raises EngineLost, also while nothing waits."""
        room = self._engine.facts.room if self._engine.facts is not None else None
        arrived, died = (asyncio.ensure_future(event.wait()) for event in (self._arrived, self._engine.died))
        try:
            await asyncio.wait((arrived, died), return_when=asyncio.FIRST_COMPLETED)
        finally:
            arrived.cancel()
            died.cancel()
        if self._engine.died.is_set():
            raise self._lost or EngineLost("the engine has ended")
        if room is None and len(self._line) < self._settings.batch_size and self._settings.batch_wait_ms:
            await asyncio.sleep(self._settings.batch_wait_ms / 1e3)
        batch = self._take(self._settings.batch_size if room is None else 1)
        if not self._line:
            self._arrived.clear()
        if batch:
            self._start(batch)
        if len(self._running) >= (room or 1):
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)

    def _start(self, batch: list[_Waiting]) -> None:
        running = asyncio.ensure_future(self._embed(batch))
        if self._engine.facts is not None and self._engine.facts.room is not None:
            (alone,) = batch
            alone.alone = running
        self._embedding.update(batch)
        self._running.add(running)
        running.add_done_callback(lambda ended: self._note_ended(ended, batch))
        self._metrics.batch_size.observe(len(self._embedding))

    def _note_ended(self, running: asyncio.Future[None], batch: list[_Waiting]) -> None:
        self._running.discard(running)
        if running.cancelled():  # its client has gone; what is lost with the engine stays, for `fail_all`
            self._embedding.difference_update(batch)

    async def _embed(self, batch: list[_Waiting]) -> None:
        began = time.perf_counter()
        for one in batch:
            self._metrics.wait_seconds.observe(began - one.since)
        try:
            outcomes = await self._engine.embed([one.work for one in batch])
        except EngineLost as error:  # it has died: `run` sees it, and answers the batch
            self._lost = error
            return
        self._embedding.difference_update(batch)
        for one, outcome in zip(batch, outcomes, strict=True):
            if not one.outcome.done():
                one.outcome.set_result(outcome)
        self._starts = 0
        self._metrics.batch_seconds.observe(time.perf_counter() - began)
        self._note_answered(len(batch))

    def _note_answered(self, inputs: int) -> None:
        """Only while inputs wait: an engine with room says little about what a full line would take."""
        now = time.perf_counter()
        self._answered += inputs
        if not self._line or not self._full_since:
            self._full_since, self._answered = now if self._line else 0.0, 0
        elif self._answered >= self._settings.batch_size:
            self._admission.note_answered(self._answered, now - self._full_since)
            self._full_since, self._answered = now, 0

    def _take(self, most: int) -> list[_Waiting]:
        """The next inputs of the kind that waits longest, in order. Inputs of requests that have gone are dropped."""
        batch: list[_Waiting] = []
        others: list[_Waiting] = []
        while self._line and len(batch) < most:
            one = self._line.popleft()
            if one.outcome.done():
                continue
            (batch if not batch or one.work.route == batch[0].work.route else others).append(one)
        self._line.extendleft(reversed(others))
        return batch
