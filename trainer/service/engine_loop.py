"""What runs in the engine's process: an embedder that answers one batch after the other, or, with vLLM, inputs side by side.

With vLLM every input is a request of its own in vLLM's batch: it joins when it comes and is answered when it is done, whatever
trace its neighbours still write.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

import numpy as np

from schemas.errors import CotError, InputError
from schemas.training import RouteChoice
from trainer.embedding.query_embedding import QueryEmbedding, choose_to_reason
from trainer.embedding.trace_embedder import TraceEmbedder
from trainer.embedding.vllm_engine import VllmEngine
from trainer.embedding.vllm_engine_start import EngineError
from trainer.service.protocol import Embedded

logger = logging.getLogger(__name__)

T = TypeVar("T")
_PROBE: Final = "Does the embedder still work?"


class EngineLost(CotError):
    """The engine's process has ended, or did not answer in time."""


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
    """What a started engine says about its embedder.

    room: inputs that it embeds side by side, each sent alone; None: it is sent one batch after the other.
    """

    dim: int
    sha256: str | None
    room: int | None


Outcome = Embedded | Refused | Failed
Asked = tuple[int, list[Work] | None]
"""A number that the answer repeats, and what is to be embedded: a batch, or one input. None: the input of that number is not
wanted any more."""
Answered = tuple[int, list[Outcome]]


def run_engine(connection: Connection, load: Callable[[], TraceEmbedder]) -> None:
    """The process: loads the embedder, then answers until the pipe is closed."""
    os.setpgid(0, 0)  # a terminal's Ctrl-C is for the service, also where vLLM starts processes that would heed it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        embedder = load()
    except Exception as error:  # noqa: BLE001 (the service raises it)
        connection.send(error if isinstance(error, CotError) else EngineLost(f"the engine cannot start: {error!r}"))
        return
    engine = embedder.engine
    try:
        connection.send(EngineFacts(embedder.dim, embedder.sha256, engine.room if engine is not None else None))
        if engine is not None:
            _Lanes(connection, embedder, engine).run()
        while True:
            number, works = connection.recv()
            connection.send((number, _embed_each(embedder, works)))
    except (EOFError, OSError):
        _end_process(engine, 0)
    finally:
        connection.close()  # first: by this the service sees the end
        embedder.close()


class _Lanes:
    """Inputs in vLLM's batch, which come and go one by one."""

    def __init__(self, connection: Connection, embedder: TraceEmbedder, engine: VllmEngine) -> None:
        self._connection, self._embedder, self._engine = connection, embedder, engine
        self._asked: dict[str, tuple[int, Work]] = {}

    def run(self) -> None:
        """Until the pipe is closed. Ends the process if vLLM is broken: it is started again."""
        while True:
            dropped: set[int] = set()
            while self._connection.poll(0 if self._engine.busy else None):
                number, works = self._connection.recv()
                if works is None:
                    dropped.add(number)
                elif (refusal := self._add(number, *works)) is not None:
                    self._connection.send((number, [refusal]))
            if dropped:
                self._drop(dropped)
            if not self._engine.busy:  # a step would wait for an output that nobody makes
                continue
            for key, one in self._unless_broken(self._engine.step):
                number, work = self._asked.pop(key)
                self._connection.send((number, [self._outcome(work, one)]))

    def _add(self, number: int, work: Work) -> Outcome | None:
        """Why it is not embedded; None if it will be."""
        try:
            if work.route is None:
                sequence, reason = self._embedder.encode_candidate("the candidate", work.content), None
            else:
                sequence = self._embedder.encode_query("the query", work.content, work.instruction)
                (reason,) = choose_to_reason(1, work.route, None)
            (inputs,) = self._engine.make_inputs([sequence], prompts_only=work.route is not None)
            key = self._engine.add(inputs, reason, one_token=work.route is None)
        except InputError as error:
            return Refused(error.problem, error.remedy)
        except EngineError:
            _tell_and_end(self._engine)
        except Exception as error:
            logger.exception("an input failed")
            return Failed(type(error).__name__)
        self._asked[key] = number, work
        return None

    def _drop(self, numbers: set[int]) -> None:
        """In one call: vLLM on a GPU answers it after the step that it is at. Inputs that are answered already are ignored."""
        keys = [key for key, (number, _) in self._asked.items() if number in numbers]
        for key in keys:
            del self._asked[key]
        self._unless_broken(lambda: self._engine.abort(keys))

    def _unless_broken(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except Exception:  # noqa: BLE001 (whatever it is, what was in the batch is lost)
            _tell_and_end(self._engine)

    def _outcome(self, work: Work, one: QueryEmbedding) -> Outcome:
        if work.route is None:
            return _finite(Embedded(one.vector.numpy(), one.prompt_tokens))
        return _embedded_query(one.fall_back(self._embedder.settings.adaptive.fallback))


def _tell_and_end(engine: VllmEngine | None = None) -> NoReturn:
    logger.exception("the embedder does not work any more")
    _end_process(engine, 1)


def _end_process(engine: VllmEngine | None, code: int) -> NoReturn:
    """Without vLLM's own clean-up if there is nothing to end beside this process: it collects garbage for seconds."""
    if engine is not None and not engine.has_processes:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _embed_each(embedder: TraceEmbedder, works: list[Work]) -> list[Outcome]:
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


def _check_engine(embedder: TraceEmbedder) -> None:
    """Ends the process if the embedder is broken (a device after a fault stays so): it is started again."""
    try:
        embedder.embed_queries([_PROBE], instruction=_PROBE, route="always-direct")
    except Exception:  # noqa: BLE001 (whatever it is)
        _tell_and_end()


def _embed(embedder: TraceEmbedder, works: list[Work]) -> list[Outcome]:
    contents = [work.content for work in works]
    route = works[0].route
    if route is None:
        vectors_CD, tokens_C = embedder.embed_counted(contents)
        return [_finite(Embedded(vector, int(tokens))) for vector, tokens in zip(vectors_CD, tokens_C, strict=True)]
    queries = embedder.embed_queries(contents, instruction=[work.instruction for work in works], route=route)
    return [_embedded_query(one) for one in queries]


def _embedded_query(one: QueryEmbedding) -> Outcome:
    return _finite(
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


def _finite(embedded: Embedded) -> Outcome:
    return embedded if np.isfinite(embedded.vector).all() else Failed("the vector is not finite (NaN or inf)")
