"""An embedder in a process of its own, so that the service answers whatever happens to it.

The process (`engine_loop`) is asked through a pipe and sends back one outcome for each input: an answer, or why there is none.
It ends when the pipe is closed, so it never outlives the service, however that ends. Signals that a terminal or a service
manager sends to the whole group are left to the service, which stops it after the last answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Final

from trainer.embedding.trace_embedder import TraceEmbedder
from trainer.service.engine_loop import Asked, EngineFacts, EngineLost, Outcome, Work, run_engine

logger = logging.getLogger(__name__)

_STOP_S: Final = 10.0


class EngineProcess:
    """Starts, asks and stops the process."""

    def __init__(self, load: Callable[[], TraceEmbedder], *, patience_s: float = 600.0) -> None:
        """load: picklable; called in the process. patience_s: if an answer takes longer, the process is ended."""
        self._load, self._patience_s = load, patience_s
        self._process: Any = None
        self._connection: Connection | None = None
        self._sender, self._receiver = ThreadPoolExecutor(1, "to-engine"), ThreadPoolExecutor(1, "from-engine")
        self._receiving: asyncio.Future[None] | None = None
        self._numbers, self._asked = itertools.count(), dict[int, asyncio.Future[list[Outcome]]]()
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
        try:
            said = await loop.run_in_executor(self._receiver, self._connection.recv)
        except (EOFError, OSError) as error:
            raise EngineLost("the engine has ended", "see its log") from error
        if isinstance(said, BaseException):
            raise said
        facts: EngineFacts = said
        self.facts = facts
        self.died.clear()
        self._receiving = loop.run_in_executor(self._receiver, self._receive, self._connection, loop)
        return facts

    async def embed(self, works: Sequence[Work]) -> list[Outcome]:
        """Outcomes in the order of `works`. May be called again meanwhile: an engine with `room` embeds side by side.

        Such an engine stops to embed an input whose call is cancelled. Raises EngineLost if the process ends or takes too long.
        """
        if not works:
            return []
        loop = asyncio.get_running_loop()
        number, answer = next(self._numbers), loop.create_future()
        self._asked[number] = answer
        try:
            async with asyncio.timeout(self._patience_s):
                await loop.run_in_executor(self._sender, self._send, (number, list(works)))
                outcomes: list[Outcome] = await answer
                return outcomes
        except asyncio.CancelledError:
            if self.facts is not None and self.facts.room is not None:
                with contextlib.suppress(RuntimeError):  # the threads have ended with the service
                    self._sender.submit(self._send, (number, None))
            raise
        except TimeoutError:
            self._process.kill()
            late = f"the engine did not answer within {self._patience_s:g} s"
            self._lose(late)
            raise EngineLost(late, "send the request again") from None
        finally:
            self._asked.pop(number, None)

    async def stop(self) -> None:
        await self._end()
        for thread in (self._sender, self._receiver):
            thread.shutdown(wait=False)

    def _send(self, asked: Asked) -> None:
        """In a thread: a full pipe is waited for. If it is broken, `_receive` sees it."""
        with contextlib.suppress(OSError):
            if self._connection is not None:
                self._connection.send(asked)

    def _receive(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread, until the pipe ends."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, outcomes = connection.recv()
                loop.call_soon_threadsafe(self._settle, number, outcomes)
        loop.call_soon_threadsafe(self._lose, "the engine has ended")

    def _settle(self, number: int, outcomes: list[Outcome]) -> None:
        answer = self._asked.get(number)
        if answer is not None and not answer.done():
            answer.set_result(outcomes)

    def _lose(self, problem: str) -> None:
        self.died.set()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(EngineLost(problem, "send the request again"))

    async def _end(self) -> None:
        self.died.set()
        if self._connection is None:
            return
        # closing it would not wake the thread that reads it
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as same:
            same.shutdown(socket.SHUT_RDWR)
        await asyncio.get_running_loop().run_in_executor(None, _reap, self._process)
        if self._receiving is not None:
            await self._receiving
            self._receiving = None
        self._connection.close()
        self._connection = None


def _reap(process: Any) -> None:
    process.join(_STOP_S)
    if process.is_alive():
        logger.warning("the engine did not end within %g s and is killed", _STOP_S)
        process.kill()
        process.join()
