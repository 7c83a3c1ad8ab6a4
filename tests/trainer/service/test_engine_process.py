"""The engine's process: several calls at once, and one that hangs."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import numpy as np
import pytest
import torch

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
