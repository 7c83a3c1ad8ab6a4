"""An embedder in a process of its own, so that the service answers whatever happens to it.

The process is given batches through a pipe and sends back one outcome for each item: an answer, or why there is none. It ends
when the pipe is closed, so it never outlives the service, however that ends. Signals that a terminal or a service manager sends
to the whole group are left to the service, which stops it after the last batch.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.errors import CotError, InputError
from schemas.training import RouteChoice
from trainer.embedding.adaptive import QueryEmbedding
from trainer.embedding.trace_embedder import QueryContent, TextOrImage
from trainer.service.protocol import Embedded

logger = logging.getLogger(__name__)

_STOP_S: Final = 10.0
_PROBE: Final = "Does the embedder still work?"


class EngineLost(CotError):
    """The engine's process has ended, or did not answer in time."""


class Embeds(Protocol):
    """What the engine needs of an embedder: `TraceEmbedder` has it."""

    @property
    def dim(self) -> int: ...

    @property
    def sha256(self) -> str | None: ...

    def embed_queries(
        self, queries: Sequence[QueryContent], *, instruction: str | Sequence[str], route: RouteChoice
    ) -> list[QueryEmbedding]: ...

    def embed_counted(self, candidates: Sequence[TextOrImage]) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...


class Work(NamedTuple):
    """One input, decoded. route: None for a candidate. Items of a batch have the same route."""

    content: Any
    instruction: str
    route: RouteChoice | None


class Refused(NamedTuple):
    """The input cannot be embedded: the client's fault."""

    problem: str
    remedy: str


class Failed(NamedTuple):
    """The input was not embedded: a fault of ours. What it was is in the log."""

    problem: str


class EngineFacts(NamedTuple):
    """What a started engine says about its embedder."""

    dim: int
    sha256: str | None


Outcome = Embedded | Refused | Failed


class EngineProcess:
    """Starts, asks and stops the process. One batch at a time."""

    def __init__(self, load: Callable[[], Embeds], *, patience_s: float = 600.0) -> None:
        """load: picklable; called in the process. patience_s: a batch that takes longer ends the process."""
        self._load, self._patience_s = load, patience_s
        self._process: Any = None
        self._connection: Connection | None = None
        self._thread = ThreadPoolExecutor(1, "engine")
        self.facts: EngineFacts | None = None
        self.died = asyncio.Event()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def alive(self) -> bool:
        """Whether it is loaded and running."""
        return self.facts is not None and not self.died.is_set()

    async def start(self) -> EngineFacts:
        """Starts the process, or starts it again, and waits until the embedder is loaded.

        Raises what `load` raises, and EngineLost if the process ends before.
        """
        loop = asyncio.get_running_loop()
        await self._end()
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=run_engine, args=(theirs, self._load), name="mbeir-cot-engine")
        self._process.start()
        theirs.close()  # or its end would not be seen
        said = await loop.run_in_executor(self._thread, self._receive, None)
        if isinstance(said, BaseException):
            raise said
        facts: EngineFacts = said
        self.facts = facts
        self.died.clear()
        loop.add_reader(self._process.sentinel, self._note_death, self._process.sentinel)
        return facts

    async def embed(self, works: Sequence[Work]) -> list[Outcome]:
        """Outcomes in the order of `works`. Raises EngineLost if the process ends or takes too long."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._exchange, list(works))
        except EngineLost:
            self.died.set()
            raise

    async def stop(self) -> None:
        await self._end()
        self._thread.shutdown(wait=False)

    def _note_death(self, sentinel: int) -> None:
        asyncio.get_running_loop().remove_reader(sentinel)
        self.died.set()

    def _exchange(self, works: list[Work]) -> list[Outcome]:
        assert self._connection is not None, "started"
        try:
            self._connection.send(works)
        except OSError as error:
            raise EngineLost("the engine has ended", "send the request again") from error
        outcomes: list[Outcome] = self._receive(self._patience_s)
        return outcomes

    def _receive(self, patience_s: float | None) -> Any:
        assert self._connection is not None, "started"
        try:
            if self._connection.poll(patience_s):
                return self._connection.recv()
        except (EOFError, OSError) as error:
            raise EngineLost("the engine has ended", "send the request again") from error
        self._process.kill()
        raise EngineLost(f"the engine did not answer within {patience_s:g} s", "send the request again")

    async def _end(self) -> None:
        self.died.set()
        if self._process is None:
            return
        asyncio.get_running_loop().remove_reader(self._process.sentinel)
        if self._connection is not None:
            self._connection.close()
        await asyncio.get_running_loop().run_in_executor(None, _reap, self._process)


def _reap(process: Any) -> None:
    process.join(_STOP_S)
    if process.is_alive():
        process.kill()
        process.join()


def run_engine(connection: Connection, load: Callable[[], Embeds]) -> None:
    """The process: loads the embedder, then answers batches until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        embedder = load()
    except Exception as error:  # noqa: BLE001 (the service raises it)
        connection.send(error if isinstance(error, CotError) else EngineLost(f"the engine cannot start: {error!r}"))
        return
    try:
        connection.send(EngineFacts(embedder.dim, embedder.sha256))
        while True:
            connection.send(_embed_each(embedder, connection.recv()))
    except (EOFError, OSError):
        return


def _embed_each(embedder: Embeds, works: list[Work]) -> list[Outcome]:
    """One bad input must not fail its neighbours: if a batch fails, its items are tried one by one."""
    try:
        return _embed(embedder, works)
    except InputError as error:
        if len(works) == 1:
            return [Refused(error.problem, error.remedy)]
    except Exception as error:
        logger.exception("a batch of %d failed", len(works))
        if len(works) == 1:
            _check_engine(embedder)
            return [Failed(type(error).__name__)]
    return [outcome for work in works for outcome in _embed_each(embedder, [work])]


def _check_engine(embedder: Embeds) -> None:
    """Ends the process if the embedder is broken (a device after a fault stays so): it is started again."""
    try:
        embedder.embed_queries([_PROBE], instruction=_PROBE, route="always-direct")
    except Exception:
        logger.exception("the embedder does not work any more")
        sys.exit(1)


def _embed(embedder: Embeds, works: list[Work]) -> list[Outcome]:
    contents = [work.content for work in works]
    route = works[0].route
    if route is None:
        vectors_CD, tokens_C = embedder.embed_counted(contents)
        return [_finite(Embedded(vector, int(tokens))) for vector, tokens in zip(vectors_CD, tokens_C, strict=True)]
    queries = embedder.embed_queries(contents, instruction=[work.instruction for work in works], route=route)
    return [
        _finite(
            Embedded(
                one.vector.numpy(),
                one.prompt_tokens,
                one.reasoned,
                one.ended,
                one.trace,
                one.p_direct,
                one.tokens,
                one.confidence,
                one.fell_back,
            )
        )
        for one in queries
    ]


def _finite(embedded: Embedded) -> Outcome:
    return embedded if np.isfinite(embedded.vector).all() else Failed("the vector is not finite (NaN or inf)")
