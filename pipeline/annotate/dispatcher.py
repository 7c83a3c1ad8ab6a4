"""Distributes a build's work to annotation workers, and watches and stops them.

Chunks of the work list go to Ray actors and come back in any order. Servers are started when the first query has no answer in
the ledger. A teacher that is down or unusable ends the build early, with a diagnosis.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import ray

from pipeline.annotate.build_progress import Board
from pipeline.annotate.worker_actor import WorkerActor
from pipeline.annotate.worker_stats import WorkerStats
from pipeline.dataset.staging import Chunk, Staging
from pipeline.ledger.disputes import disputed_subjects
from pipeline.ledger.segment import SegmentStore
from pipeline.mbeir.work_list import WorkList
from pipeline.serving.environ import carried
from pipeline.serving.ray_session import start_ray
from pipeline.serving.teacher_servers import Teachers
from schemas.config import BuildConfig
from schemas.errors import BuildError, BuildStopped, CotError
from schemas.os_errors import explained

logger = logging.getLogger(__name__)

_AHEAD: Final = 4
"""Queries that a worker holds at once, as a multiple of its requests in flight. A query sends its requests one after another,
so a worker needs more queries than places; the next chunks fill what the last queries of a chunk leave free."""

_CHUNKS_PER_ANNOTATOR: Final = 24
_CHUNK: Final = (16, 128)
"""Fewest and most queries in a chunk."""
_POLL_S: Final = 0.5
_WATCH_S: Final = 3.0
_DRAIN_S: Final = 60.0
_RESTARTS: Final = 10


class Dispatcher:
    """The annotation workers of a build and their chunks. Servers that were started run until the end of the `with` block."""

    def __init__(
        self,
        config: BuildConfig,
        *,
        board: Board,
        ledger: str,
        logs: Path,
        interrupted: Callable[[], bool],
    ) -> None:
        self._config = config
        self._board, self._ledger = board, ledger
        self._interrupted = interrupted
        start_ray()
        self._logs = logs
        self._teachers = Teachers(config, logs, ledger)
        self._stats: dict[int, WorkerStats] = {}
        self._watched = 0.0
        self._answered = self._answered_before = 0
        self._told = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._teachers.stop()

    def run(self, work: WorkList, staging: Staging) -> None:
        """Annotates all of `work`, and puts its chunks into `staging` in the order of the work."""
        self._share_out(work, staging)
        chunks = -(-len(work) // self._size)
        once = _without_retries(self._config)  # the first pass has already retried failures
        self._annotate(list(range(chunks)), self._count, self._config)
        suspected = [number for number, count in sorted(staging.suspects.items()) if count]
        if suspected:  # a server died: find the request that killed it
            logger.warning("%d chunks had requests in flight when a server died: sent again, one at a time", len(suspected))
            self._annotate(suspected, 1, once, alone=True)
        disputed = self._disputed()
        if disputed:  # two workers sent the same request at once: all must use the answer that the ledger chooses
            logger.info("%d chunks used an answer that the ledger does not choose: annotated again", len(disputed))
            self._annotate(disputed, 1, once)

    def _share_out(self, work: WorkList, staging: Staging) -> None:
        """Into chunks, for as many workers as there is work."""
        self._work, self._staging = work, staging
        count = self._config.workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // 4)
        least, most = _CHUNK
        self._size = max(least, min(most, -(-len(work) // (count * _CHUNKS_PER_ANNOTATOR))))
        self._ahead = max(3, -(-_AHEAD * self._config.teacher.transport.max_in_flight // self._size))
        self._count = min(count, max(1, -(-len(work) // self._size)))

    def _annotate(self, numbers: list[int], count: int, config: BuildConfig, *, alone: bool = False) -> None:
        remote = ray.remote(num_cpus=0.5, max_restarts=_RESTARTS, max_task_retries=_RESTARTS, scheduling_strategy="SPREAD")(
            WorkerActor
        )
        given = carried(endpoint.api_key_env for endpoint in self._config.named_endpoints())
        workers = [
            remote.remote(config, self._ledger, alone=alone, environment=given, log=self._logs / f"worker-{number}.log")
            for number in range(count)
        ]
        logger.info("%d chunks of up to %d queries for %d workers", len(numbers), self._size, count)
        waiting, running = deque(numbers), dict[Any, tuple[int, int]]()
        load = [0] * count
        done = sum(self._length(number) for number in range(len(self._staging)) if number not in numbers)
        try:
            self._board.state("running")
            while waiting or running:
                while waiting and min(load) < self._ahead:
                    who = load.index(min(load))
                    number = waiting.popleft()
                    items = self._work.read(number * self._size, (number + 1) * self._size)
                    running[workers[who].annotate.remote(items)] = (number, who)
                    load[who] += 1
                ready, _ = ray.wait(list(running), timeout=_POLL_S)
                for reference in ready:
                    number, who = running.pop(reference)
                    load[who] -= 1
                    chunk: Chunk | None = _result(reference)
                    if chunk is None:
                        raise self._stopped()
                    self._put(number, chunk)
                    done += self._length(number)
                    logger.debug("chunk %d from worker %d", number, who)
                self._watch(workers, done)
                if self._interrupted():
                    raise self._stopped()
            stats = self._collect_stats(workers)
            self._board.update(stats, done)
            self._give_up(stats)  # a short build may end before the first look
            self._answered_before += _count_answers(stats)
            self._stats.clear()  # the next pass has workers of its own
        except BaseException:
            self._dismiss(workers, list(running))
            raise
        for actor in workers:
            _result(actor.close.remote())
            ray.kill(actor)

    def _put(self, number: int, chunk: Chunk) -> None:
        try:
            self._staging.put(number, chunk)
        except OSError as error:
            cause, remedy = explained(error)
            raise BuildError(
                f"cannot write {self._staging.path}: {cause}",
                f"{remedy} and run the same command again: every answer is in the ledger",
            ) from error

    def _length(self, number: int) -> int:
        return min(len(self._work), (number + 1) * self._size) - number * self._size

    def _stopped(self) -> BuildStopped:
        return BuildStopped("the build was stopped", "run the same command again: it continues where it stopped")

    def _watch(self, workers: list[Any], done: int) -> None:
        """Updates the progress, starts servers when they are needed, and ends the build if it cannot succeed."""
        now = time.monotonic()
        if now - self._watched < _POLL_S:
            return
        self._watched = now
        stats = self._collect_stats(workers)
        self._board.update(stats, done)
        if any(tally.waits_for_teacher for tally in stats):
            if not self._teachers.begun:
                self._teachers.begin()
            endpoints = self._teachers.endpoints
            if endpoints is None and self._teachers.doing not in ("", self._told):
                self._told = self._teachers.doing
                self._board.state("starting the teacher", self._told)
            if endpoints is not None:
                logger.info("the teacher answers at %s", ", ".join(endpoint.url for endpoint in endpoints.teacher))
                for actor in workers:
                    actor.connect.remote(endpoints)
                self._board.state("running")
        failures = self._teachers.failures() if self._teachers.endpoints is not None and int(now) % int(_WATCH_S) == 0 else []
        answered = self._answered_before + _count_answers(stats)
        for failure in failures:
            logger.error("a server was given up: %s", failure)
        if failures and answered != self._answered:  # there was progress: restart with a new count
            self._answered = answered
            self._teachers.revive()
        elif failures:
            raise BuildError(failures[0], "fix the server and run again: every answer so far is kept")
        self._give_up(stats)

    def _give_up(self, stats: list[WorkerStats]) -> None:
        stop = self._config.early_stop
        rejected: Counter[str] = Counter()
        for tally in stats:
            rejected += tally.rejected
        reasons = ", ".join(f"{name} ({count})" for name, count in rejected.most_common(4))
        trouble = next((tally.trouble for tally in stats if tally.trouble), "")
        unread = max(stats, key=lambda tally: tally.unread_share, default=None)
        if unread is not None and unread.unread_share > stop.inputs:
            raise BuildError(
                f"more than {stop.inputs:.0%} of the last queries were rejected for {unread.unread_reason}; the last: "
                f"{unread.unread_last}",
                f"check that the images below {self._config.mbeir} are complete and their disk is mounted, then run again; "
                "leave datasets out with input.datasets, or raise early_stop.inputs to continue",
            )
        if any(tally.unreachable_s > stop.unreachable_s for tally in stats):
            raise BuildError(
                f"no server of the teacher can be reached for {stop.unreachable_s:g} s",
                "check the servers (`mbeir-cot teacher check CONFIG`), then run again: every answer so far is kept",
            )
        if any(tally.failure_share > stop.failures for tally in stats):
            raise BuildError(
                f"more than {stop.failures:.0%} of the last requests had no usable answer: {reasons}\n  the last: {trouble}",
                "check the teacher (`mbeir-cot teacher check CONFIG`), then run again: every answer so far is kept",
            )
        if any(tally.rejection_share > stop.rejections for tally in stats):
            raise BuildError(
                f"more than {stop.rejections:.0%} of the last {stop.window} reasoning queries were rejected: {reasons}\n"
                f"  the last: {trouble}",
                "check prompts, model and bounds (`mbeir-cot preview CONFIG` shows examples); "
                "raise early_stop.rejections to continue",
            )

    def _collect_stats(self, workers: list[Any]) -> list[WorkerStats]:
        """The latest stats of each worker; the last known ones of a worker that restarts."""
        references = [actor.stats.remote() for actor in workers]
        ray.wait(references, num_returns=len(references), timeout=5)
        for number, reference in enumerate(references):
            with contextlib.suppress(ray.exceptions.RayError):
                self._stats[number] = ray.get(reference, timeout=0.01)
        return [self._stats[number] for number in sorted(self._stats) if number < len(workers)]

    def _dismiss(self, workers: list[Any], running: list[Any]) -> None:
        """Waits for answers in flight, seals the ledger, and ends the workers."""
        self._board.state("stopping", "waiting for the answers in flight; Ctrl-C again to quit at once")
        with contextlib.suppress(ray.exceptions.RayError):
            drained = [actor.drain.remote() for actor in workers]
            ray.wait(drained, num_returns=len(drained), timeout=_DRAIN_S)
            if running:
                ray.wait(running, num_returns=len(running), timeout=_DRAIN_S)
            closed = [actor.close.remote() for actor in workers]
            ray.wait(closed, num_returns=len(closed), timeout=_DRAIN_S)
        for actor in workers:
            ray.kill(actor)

    def _disputed(self) -> list[int]:
        """Chunks that used an answer that the ledger does not choose: one of two to the same request, sent at the same time."""
        if self._count == 1:
            return []
        subjects = disputed_subjects(SegmentStore(self._ledger))
        if not subjects:
            return []
        disputed = []
        for number in range(len(self._staging)):
            ids = {identifier for table in self._staging.get(number) for identifier in table["id"].to_pylist()}
            if ids & subjects:
                disputed.append(number)
        return disputed


def _without_retries(config: BuildConfig) -> BuildConfig:
    return config.model_copy(update={"ledger": config.ledger.model_copy(update={"retry_failed": False})})


def _result(reference: Any) -> Any:
    """The result of a task. Raises our own errors as themselves, without Ray's wrapper."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, CotError):
            raise cause from None
        raise
    except ray.exceptions.ActorDiedError as error:
        raise BuildError(
            f"an annotation worker cannot continue (it was restarted up to {_RESTARTS} times): {error}",
            "look for the cause in Ray's logs (out of memory?), then run again; every answer so far is kept",
        ) from None


def _count_answers(stats: list[WorkerStats]) -> int:
    return sum(tally.asked - tally.failed for tally in stats)
