"""Keeps the final states that vLLM decodes from: what runs inside vLLM's worker process.

A greedy token is the argmax of `lm_head(state)`, and the embedding is a state that `lm_head` is given. So nothing has to be
computed for it: `StateKeeper`, a logits processor of vLLM's, is called with the logits of every step and knows which request
each row belongs to; a hook on the layer that makes the logits shows it the states. Both are vLLM's and torch's own extension
points; the engine's model, sampler and scheduler are as they come.

A request says in `SamplingParams.extra_args["trace"]` what is wanted of it (see `Wanted`).
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any, Final, TypedDict

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.model_executor.layers.logits_processor import LogitsProcessor as LogitsLayer
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from trainer.embedding.trace_end import is_cut

ARGUMENT: Final = "trace"
_NEVER: Final = torch.finfo(torch.float32).min
_LOOK_S: Final = 1.0


class Wanted(TypedDict):
    """What a request wants.

    key: names it. emb: the embedding token. stops: tokens that end the turn. reason: whether it writes a trace; None for the
    student's own choice. limit: tokens of a trace. token: pool the embedding token's own state, not the one before it.
    """

    key: str
    emb: int
    stops: list[int]
    reason: bool | None
    limit: int
    token: bool


class _Lane:
    """A request in vLLM's batch. written: its tokens so far, vLLM's own list, which grows. Times by time.monotonic().

    log_ps: the log-probability of each written token and of the next one, that of the first among those that begin a trace.
    """

    __slots__ = ("began", "cut", "first", "first_at", "last", "last_at", "log_ps", "p_direct", "wanted", "written")

    def __init__(self, wanted: Wanted, written: list[int]) -> None:
        self.wanted, self.written = wanted, written
        self.first: Tensor | None = None
        self.last: Tensor | None = None
        self.began, self.first_at, self.last_at = time.monotonic(), 0.0, 0.0
        self.p_direct, self.cut = 0.0, False
        self.log_ps: list[Tensor] = []

    @property
    def trace_log_ps(self) -> list[Tensor]:
        """Without the end of the trace."""
        return self.log_ps[: -2 if self.wanted["token"] else -1]


class StateKeeper(LogitsProcessor):  # type: ignore[misc]  # vllm.* is not followed
    """One per worker. Keeps a request's states until they are taken."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.states: Tensor | None = None
        self._lanes: dict[int, _Lane] = {}
        self._kept: dict[str, _Lane] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._lanes, batch_update, self._new_lane)

    def _new_lane(self, params: SamplingParams, prompt: list[int] | None, written: list[int]) -> _Lane | None:
        wanted: Wanted | None = (params.extra_args or {}).get(ARGUMENT)
        if wanted is None:
            return None
        # a request that was preempted comes again, with the tokens that it had written
        lane = self._kept.get(wanted["key"])
        if lane is None:
            lane = self._kept[wanted["key"]] = _Lane(wanted, written)
        lane.written = written
        return lane

    def apply(self, logits: Tensor) -> Tensor:
        """Notes the states of all requests, and forces the tokens that were asked for."""
        if not self._lanes:
            return logits
        states_BD, now = self.states, time.monotonic()
        if states_BD is None or len(states_BD) != len(logits):
            raise RuntimeError("the states of this step are not those of its logits: is this another model runner of vLLM?")
        fresh = []
        log_p_B = _best_log_p(logits)
        for row, lane in self._lanes.items():
            lane.last, lane.last_at = states_BD[row], now
            if not lane.written:
                fresh.append(row)
            del lane.log_ps[len(lane.written) :]
            lane.log_ps.append(log_p_B[row])
        if fresh:  # also rows of prompts that are not read to their end yet; the last time counts
            first, fresh_BV = self._lanes[fresh[0]].wanted, logits[fresh]
            p_direct = fresh_BV.softmax(-1)[:, first["emb"]].tolist()
            fresh_BV[:, [first["emb"], *first["stops"]]] = _NEVER
            log_p_B[fresh] = _best_log_p(fresh_BV)  # of the words, which begin a trace
            for row, p in zip(fresh, p_direct, strict=True):
                lane = self._lanes[row]
                lane.first, lane.p_direct, lane.first_at = lane.last, p, now
                self._force_first(logits[row], lane.wanted)
        for row, lane in self._lanes.items():
            if lane.wanted["token"]:
                self._close(logits[row], lane)
        return logits

    def _force_first(self, logits_V: Tensor, wanted: Wanted) -> None:
        if wanted["reason"] is True:
            logits_V[[wanted["emb"], *wanted["stops"]]] = _NEVER
        elif wanted["reason"] is False:
            _force(logits_V, wanted["emb"])

    def _close(self, logits_V: Tensor, lane: _Lane) -> None:
        """With `token` pooling the embedding token is fed too, and the request ends after it."""
        wanted, written = lane.wanted, lane.written
        if written and written[-1] == wanted["emb"]:
            _force(logits_V, wanted["stops"][0])
            return
        token = int(logits_V.argmax())
        if is_cut(token, written, emb=wanted["emb"], stops=wanted["stops"], limit=wanted["limit"]):
            lane.cut = True
            _force(logits_V, wanted["emb"])

    def take(self, keys: Sequence[str]) -> tuple[bytes, bytes, list[tuple[float, bool, float, float, float, float | None]]]:
        """The states of these requests, which are forgotten here.

        The states that predicted each request's last token and those of the prompts' ends, both (n, dim) in float32 as bytes,
        which vLLM passes between its processes as they are; and for each request the embedding token's probability after the
        prompt, whether the trace was cut here, the times of its start, its first state and its last, and the trace's confidence
        (`QueryEmbedding.confidence`).
        """
        lanes = [self._kept.pop(key) for key in keys]
        last, first = [lane.last for lane in lanes], [lane.first for lane in lanes]
        return (
            torch.stack(last).float().cpu().numpy().tobytes(),  # type: ignore[arg-type]
            torch.stack(first).float().cpu().numpy().tobytes(),  # type: ignore[arg-type]
            [
                (lane.p_direct, lane.cut, lane.began, lane.first_at, lane.last_at, confidence)
                for lane, confidence in zip(lanes, _confidences([lane.trace_log_ps for lane in lanes]), strict=True)
            ],
        )

    def drop(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._kept.pop(key, None)


def _best_log_p(logits_BV: Tensor) -> Tensor:
    """The log-probability of each row's best token, which is the greedy one."""
    return logits_BV.amax(-1) - logits_BV.logsumexp(-1)


def _confidences(log_ps: Sequence[Sequence[Tensor]]) -> list[float | None]:
    """The mean of each trace; None for none. One transfer from the device for all."""
    every = [one for trace in log_ps for one in trace]
    values = iter(torch.stack(every).tolist() if every else ())
    return [sum(itertools.islice(values, len(trace))) / len(trace) if trace else None for trace in log_ps]


def _force(logits_V: Tensor, token: int) -> None:
    logits_V.fill_(_NEVER)
    logits_V[token] = 0.0


def _end_with(owner: int) -> None:
    """vLLM's own process does not notice that the one which started it was killed, and would keep the device's memory."""
    while os.getppid() == owner:
        time.sleep(_LOOK_S)
    os.kill(os.getpid(), signal.SIGKILL)


class StatesWorker:
    """Methods that vLLM adds to its worker (`worker_extension_cls`)."""

    model_runner: Any

    def keep_states(self, owner: int) -> None:
        """Shows the keeper the states from which every step's logits are made. owner: the process that started the engine."""
        if owner == os.getppid():
            threading.Thread(target=_end_with, args=(owner,), name="ends-with-owner", daemon=True).start()
        keeper = self._state_keeper()
        (layer,) = [module for module in self.model_runner.model.modules() if isinstance(module, LogitsLayer)]

        def note(module: torch.nn.Module, given: tuple[Any, ...]) -> None:
            keeper.states = given[1]

        layer.register_forward_pre_hook(note)

    def take_states(self, keys: list[str]) -> Any:
        return self._state_keeper().take(keys)

    def drop_states(self, keys: list[str]) -> None:
        self._state_keeper().drop(keys)

    def _state_keeper(self) -> StateKeeper:
        processors = self.model_runner.input_batch.logitsprocs.all
        (keeper,) = [one for one in processors if isinstance(one, StateKeeper)]
        return keeper
