"""The engine's process: several calls at once, and one that hangs."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from typing import Any, cast

import numpy as np
import pytest
import torch

from schemas.errors import InputError
from trainer.embedding.query_embedding import QueryEmbedding
from trainer.embedding.trace_embedder import TraceEmbedder
from trainer.service.engine_loop import EngineLost, Failed, Refused, Work
from trainer.service.engine_process import EngineProcess
from trainer.service.protocol import Embedded

pytestmark = pytest.mark.slow


class Slow:
    """Embeds a number of seconds after so many."""

    dim, sha256, engine = 1, "f" * 64, None

    def embed_queries(self, queries: list[str], **given: Any) -> list[QueryEmbedding]:
        seconds = sum(map(float, queries))
        time.sleep(seconds)
        return [QueryEmbedding(torch.tensor([float(one)]), False, True, "", 0.5, 0, seconds) for one in queries]

    def close(self) -> None: ...


def load() -> TraceEmbedder:
    return cast(TraceEmbedder, Slow())


class Endless:
    """A vLLM engine whose requests are never done."""

    dim, sha256, room, has_processes = 1, "f" * 64, 4, False

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.keys = map(str, itertools.count())

    @property
    def busy(self) -> bool:
        return bool(self.running)

    def make_inputs(self, rows: list[Any], **given: Any) -> list[Any]:
        return rows

    def add(self, inputs: Any, reason: bool | None, **given: Any) -> str:
        key = next(self.keys)
        self.running.add(key)
        return key

    def abort(self, keys: list[str]) -> None:
        self.running -= set(keys)

    def step(self) -> list[tuple[str, QueryEmbedding]]:
        assert self.running, "vLLM's own process would never answer"
        time.sleep(0.001)
        return []


class InEndless:
    """Says how many requests its engine has by refusing a query called `how many`."""

    dim, sha256 = 1, "f" * 64

    def __init__(self) -> None:
        self.engine = Endless()

    def encode_query(self, name: str, content: str, instruction: str) -> str:
        if content == "how many":
            raise InputError(str(len(self.engine.running)), "")
        return content

    def close(self) -> None:
        raise AssertionError("an engine without processes of its own ends with its process")


def load_endless() -> TraceEmbedder:
    return cast(TraceEmbedder, InEndless())


def value(outcome: Embedded | Refused | Failed) -> float:
    assert isinstance(outcome, Embedded)
    return float(np.float32(outcome.vector[0]))


async def test_calls_are_answered_in_any_order_and_one_that_hangs_ends_the_process() -> None:
    engine = EngineProcess(load, patience_s=2.0)
    facts = await engine.start()
    assert (facts.dim, facts.room, engine.alive) == (1, None, True)
    calls = [engine.embed([Work(str(seconds), "", "learned")]) for seconds in (0.02, 0.01)]
    assert [value(one) for (one,) in await asyncio.gather(*calls)] == pytest.approx([0.02, 0.01])
    hung, behind = await asyncio.gather(
        engine.embed([Work("600", "", "learned")]), engine.embed([Work("0", "", "learned")]), return_exceptions=True
    )
    assert isinstance(hung, EngineLost)
    assert isinstance(behind, EngineLost)
    assert "did not answer within 2 s" in hung.problem
    assert not engine.alive
    with pytest.raises(EngineLost):
        await engine.embed([Work("0", "", "learned")])
    began = time.monotonic()
    await engine.stop()
    assert time.monotonic() - began < 5


async def test_a_cancelled_call_is_taken_out_of_the_engine_which_ends_at_once(caplog: pytest.LogCaptureFixture) -> None:
    engine = EngineProcess(load_endless)
    await engine.start()

    async def running() -> int:
        (said,) = await engine.embed([Work("how many", "", "learned")])
        assert isinstance(said, Refused)
        return int(said.problem)

    calls = [asyncio.ensure_future(engine.embed([Work("a", "", "learned")])) for _ in range(3)]
    while await running() < 3:
        await asyncio.sleep(0.01)
    calls[1].cancel()
    while await running() > 2:
        await asyncio.sleep(0.01)
    calls[0].cancel()
    calls[2].cancel()
    while await running() > 0:
        await asyncio.sleep(0.01)
    calls.append(asyncio.ensure_future(engine.embed([Work("a", "", "learned")])))
    while await running() < 1:
        await asyncio.sleep(0.01)
    assert await engine.embed([]) == []
    process = engine._process
    with caplog.at_level(logging.WARNING):
        await engine.stop()
    assert process.exitcode == 0
    assert "is killed" not in caplog.text
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in ended] == [*[asyncio.CancelledError] * 3, EngineLost]
