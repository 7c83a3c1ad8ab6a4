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
from pipeline.annotate.worker import AnnotationWorker
from pipeline.annotate.worker_stats import WorkerStats
from pipeline.dataset.staging import Chunk, Staging
from pipeline.ledger.maintenance import disputed_subjects
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
"""Queries that a worker has at once, in requests in flight. A query is several requests in a row, the next chunks fill the
places that the last queries of one leave, and the limit should always be used."""

_CHUNKS_PER_ANNOTATOR: Final = 24
_CHUNK: Final = (16, 128)
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
        once = _without_retries(self._config)  # what the first pass has asked again is answered now
        self._annotate(list(range(chunks)), self._count, self._config)
        suspected = [number for number, count in sorted(staging.suspects.items()) if count]
        if suspected:  # a server died: which of the requests in flight killed it?
            logger.warning("%d chunks had questions in flight when a server died: asked again, one at a time", len(suspected))
            self._annotate(suspected, 1, once, alone=True)
        disputed = self._disputed()
        if disputed:  # two workers sent the same request at once: all use the answer that the ledger chose
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
            AnnotationWorker
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
                    chunk: Chunk | None = _got(reference)
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
            self._give_up(stats)  # a short build may be over before anybody has looked
            self._answered_before += _count_answers(stats)
            self._stats.clear()  # the next pass has workers of its own
        except BaseException:
            self._dismiss(workers, list(running))
            raise
        for actor in workers:
            _got(actor.close.remote())
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
        return BuildStopped("the build was stopped", "run the same command again: it goes on where it stopped")

    def _watch(self, workers: list[Any], done: int) -> None:
        """Progress; servers when they are needed; trouble."""
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
        if failures and answered != self._answered:  # there was progress: the next deaths are counted anew
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
                f"more than {stop.inputs:.0%} of the last queries were refused for {unread.unread_reason}; the last: "
                f"{unread.unread_last}",
                f"are the images below {self._config.mbeir} all there, and the disk they lie on mounted? Then run again; leave "
                "datasets out with input.datasets, or raise early_stop.inputs to go on",
            )
        if any(tally.unreachable_s > stop.unreachable_s for tally in stats):
            raise BuildError(
                f"no server of the teacher can be reached for {stop.unreachable_s:g} s",
                "look at the servers (`mbeir-cot teacher check CONFIG`), then run again: every answer so far is kept",
            )
        if any(tally.failure_share > stop.failures for tally in stats):
            raise BuildError(
                f"more than {stop.failures:.0%} of the last requests had no usable answer: {reasons}\n  the last: {trouble}",
                "look at the teacher (`mbeir-cot teacher check CONFIG`), then run again: every answer so far is kept",
            )
        if any(tally.rejection_share > stop.rejections for tally in stats):
            raise BuildError(
                f"more than {stop.rejections:.0%} of the last {stop.window} reasoning queries were rejected: {reasons}\n"
                f"  the last: {trouble}",
                "wrong prompts, model or bounds? `mbeir-cot preview CONFIG` shows some; raise early_stop.rejections to go on",
            )

    def _collect_stats(self, workers: list[Any]) -> list[WorkerStats]:
        """The latest of each; one that is being restarted keeps its last."""
        references = [actor.stats.remote() for actor in workers]
        ray.wait(references, num_returns=len(references), timeout=5)
        for number, reference in enumerate(references):
            with contextlib.suppress(ray.exceptions.RayError):
                self._stats[number] = ray.get(reference, timeout=0.01)
        return [self._stats[number] for number in sorted(self._stats) if number < len(workers)]

    def _dismiss(self, workers: list[Any], running: list[Any]) -> None:
        """Waits for answers in flight, seals the ledger, and ends the workers."""
        self._board.state("stopping", "waiting for the answers in flight; Ctrl-C again to leave at once")
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
        """Chunks that used an answer which the ledger does not choose: of two to one fingerprint, asked at the same time."""
        if self._count == 1:
            return []
        subjects = disputed_subjects(SegmentStore(self._ledger))
        if not subjects:
            return []
        found = []
        for number in range(len(self._staging)):
            ids = {identifier for table in self._staging.get(number) for identifier in table["id"].to_pylist()}
            if ids & subjects:
                found.append(number)
        return found


def _without_retries(config: BuildConfig) -> BuildConfig:
    return config.model_copy(update={"ledger": config.ledger.model_copy(update={"retry_failed": False})})


def _got(reference: Any) -> Any:
    """The result, with an error of ours as itself."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, CotError):
            raise cause from None
        raise
    except ray.exceptions.ActorDiedError as error:
        raise BuildError(
            f"an annotator cannot go on (it was restarted up to {_RESTARTS} times): {error}",
            "look at Ray's logs (memory?), fix it and run again; every answer so far is kept",
        ) from None


def _count_answers(stats: list[WorkerStats]) -> int:
    return sum(tally.asked - tally.failed for tally in stats)
