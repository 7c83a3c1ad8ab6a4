"""An annotation worker: annotates many queries at once in one process.

A build runs one or more, in Ray actors, which share only files: each has its own clients, view of the ledger, and journal."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter, deque
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.annotate.annotation import Annotation, RejectionCause
from pipeline.annotate.record_builder import RecordBuilder
from pipeline.annotate.steps import Annotator
from pipeline.annotate.teacher_clients import TeacherClients
from pipeline.annotate.worker_stats import WorkerStats
from pipeline.dataset.arrow_schema import records_table, rejections_table
from pipeline.dataset.near_duplicates import near_duplicate_key
from pipeline.dataset.staging import Chunk
from pipeline.dataset.unreadable_inputs import state_of
from pipeline.files.run_log import open_run_log
from pipeline.ledger.ledger import Ledger, LedgerError, recover
from pipeline.mbeir.candidates import CandidateLookup
from pipeline.mbeir.image_store import ImageStore
from pipeline.mbeir.instructions import FixedChoice, InstructionTable, SeededChoice
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.stores import build_store
from pipeline.mbeir.work_list import WorkItem
from pipeline.serving.environ import Carried
from pipeline.serving.teacher_servers import Endpoints
from pipeline.teacher.cached_client import CachedTeacherClient, Stopped
from pipeline.teacher.client import TeacherClient
from pipeline.teacher.request_images import ImageEncoder
from pipeline.traces.token_counts import token_counter
from schemas.config import BuildConfig
from schemas.errors import CotError
from schemas.mbeir import Candidate, Query, Split
from schemas.os_errors import explained
from schemas.record import InputReason, Record, Rejection, Route, Stage, query_record_id
from schemas.teacher import Outcome
from schemas.teacher_config import TeacherConfig

logger = logging.getLogger(__name__)

_TICK_S: Final = 0.5


def _is_lost(annotation: Annotation) -> bool:
    return any(answer.outcome is Outcome.LOST_WITH_SERVER for answer in annotation.last_answers)


class AnnotationWorker:
    """Belongs to one event loop. ledger: its location; None stores no answers (for previews).

    alone: the only worker, with one request at a time, for requests that were in flight when a server died."""

    def __init__(
        self,
        config: BuildConfig,
        ledger: str | None,
        *,
        alone: bool = False,
        environment: Carried | None = None,
        log: Path | None = None,
    ) -> None:
        if environment is not None:  # from the driver's shell: keys, the Hub's settings
            environment.set()
        if log is not None:
            open_run_log(log, keys=[endpoint.api_key_env for endpoint in config.named_endpoints()])
            logger.info("started%s", "; it sends one request at a time" if alone else "")
        self.config = config
        self._alone = alone
        self._layout = Layout.open(config.mbeir)
        self._instructions = InstructionTable.load(self._layout.instructions)
        choice = config.input
        self._choice = SeededChoice(choice.instruction_seed) if choice.instruction == "seeded" else FixedChoice(0)
        self._lookup = CandidateLookup(self._layout, choice.candidate_cache)
        self._stopping = False
        self._ledger = None
        if ledger is not None:
            recover(ledger, config.ledger.journal)  # journals of workers that were killed
            self._ledger = Ledger(
                ledger,
                journals=config.ledger.journal,
                segment_answers=config.ledger.segment_answers,
                retry_failed=config.ledger.retry_failed,
            )
        self.clients = TeacherClients(config, alone=alone)
        self._collect_stats = WorkerStats()
        self._recent: deque[bool] = deque(maxlen=config.early_stop.window)
        self._recent_unread: deque[str] = deque(maxlen=config.early_stop.window)
        self._store = store = build_store(config)
        self._teacher = self._asker("teacher", config.teacher, store)
        self._verifier = self._asker("verifier", config.verifier, store) if config.verifier is not None else self._teacher
        self.annotator = Annotator(config, self._teacher, self._verifier, token_counter(config))
        self._rows = RecordBuilder(self.annotator)
        self._upkeep: asyncio.Task[None] | None = None
        self._trouble: CotError | None = None

    def _asker(self, who: str, config: TeacherConfig, store: ImageStore) -> CachedTeacherClient:
        async def client() -> TeacherClient:
            self._collect_stats.waits_for_teacher = not self.clients.connected
            teacher = await self.clients.get(who)
            self._collect_stats.waits_for_teacher = False
            return teacher

        encoder = ImageEncoder.of(config, store)
        return CachedTeacherClient(config, self._ledger, encoder, client, lambda: self._stopping, alone=self._alone)

    # Called by the driver

    async def connect(self, endpoints: Endpoints) -> None:
        """Sets the servers' addresses; annotations that wait for them continue."""
        self.clients.connect(endpoints)

    async def annotate(self, items: list[WorkItem]) -> Chunk | None:
        """The rows of these queries; None if the build was stopped in the meantime (the answers are in the ledger)."""
        if self._upkeep is None:
            gc.freeze()  # excludes modules and templates from garbage collection
            gc.set_threshold(100_000, 20, 100)  # annotations form no cycles; a full collection takes a tenth of a second
            self._upkeep = asyncio.create_task(self._keep_up())
        annotations = self.annotations(items)
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._start(annotations, tasks)
            await asyncio.gather(*tasks)
        except Stopped:
            await asyncio.wait(tasks)
            if self._trouble is not None:
                raise self._trouble from None
            return None
        except BaseException:
            self._stopping = True  # the other chunks stop too
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            raise
        if self._trouble is not None:
            raise self._trouble
        return self._chunk(items, annotations)

    async def stats(self) -> WorkerStats:
        tally = self._collect_stats
        counters = {id(client): client.counters for client in (self._teacher, self._verifier)}.values()
        tally.asked = sum(c.asked for c in counters)
        tally.failed = sum(c.failed for c in counters)
        tally.known = sum(c.known for c in counters)
        tally.prompt_tokens = sum(c.prompt_tokens for c in counters)
        tally.completion_tokens = sum(c.completion_tokens for c in counters)
        clients = self.clients.made()
        tally.in_flight = sum(client.stats().in_flight for client in clients)
        tally.limit = sum(client.stats().limit for client in clients)
        tally.failure_share = max((client.failure_share() for client in clients), default=0.0)
        tally.unreachable_s = max((client.unreachable_s() for client in clients), default=0.0)
        window = self.config.early_stop.window
        tally.rejection_share = sum(self._recent) / len(self._recent) if len(self._recent) * 2 >= window else 0.0
        if len(self._recent_unread) * 2 >= window:
            reasons = Counter(self._recent_unread)
            usable = reasons.pop("", 0)
            reason, count = reasons.most_common(1)[0] if reasons else ("", 0)
            tally.unread_share, tally.unread_reason = count / (usable + reasons.total() or 1), reason
        return tally

    async def drain(self) -> None:
        """Sends no more requests; answers in flight are still recorded."""
        self._stopping = True
        self.clients.stop_sending(Stopped())

    async def close(self) -> None:
        """Seals the ledger and closes the clients."""
        try:
            if self._upkeep is not None:
                self._upkeep.cancel()
                with suppress(asyncio.CancelledError):
                    await self._upkeep
            await self.clients.close()
        finally:
            if self._ledger is not None:
                self._ledger.close()
        self._lookup.close()

    def annotations(self, items: list[WorkItem]) -> list[Annotation]:
        queries = [Query.model_validate_json(item.line) for item in items]
        targets = self._targets(queries, items[0].split) if items else []
        annotations = []
        for item, query, target in zip(items, queries, targets, strict=True):
            instruction = self._instructions.for_query(query, self._choice, split=item.split)
            annotations.append(
                Annotation(
                    query_record_id(query, item.split), query, item.split, instruction, target, multiplicity=item.multiplicity
                )
            )
        return annotations

    async def _start(self, annotations: list[Annotation], tasks: list[asyncio.Task[None]]) -> None:
        """Starts all. A task goes on to the next one until it has to wait: those whose answers are known need only one task."""
        waiting = deque(annotations)

        async def annotate_next() -> None:
            while waiting:
                await self._annotate(waiting.popleft())

        while waiting:
            tasks.append(asyncio.create_task(annotate_next()))
            await asyncio.sleep(0)

    async def _annotate(self, annotation: Annotation) -> None:
        try:
            await self.annotator.annotate(annotation)
        except (CotError, Stopped):
            raise
        except Exception as error:
            logger.exception("%s: a fault of this program", annotation.id)
            annotation.rejection = RejectionCause(
                Stage.INPUT, InputReason.INTERNAL_ERROR, f"a fault of this program: {error!r}"
            )
        tally = self._collect_stats
        tally.done += 1
        unread = annotation.unread
        self._recent_unread.append(str(unread.reason) if unread is not None else "")
        tally.unread_last = str(unread).splitlines()[0] if unread is not None else tally.unread_last
        if annotation.rejection is not None:
            tally.rejected[f"{annotation.rejection.stage}: {annotation.rejection.reason}"] += 1
            tally.trouble = annotation.rejection.detail
            logger.debug("%s: rejected: %s", annotation.id, annotation.rejection)
        elif annotation.route is Route.REASONING:
            tally.reasoning += 1
        else:
            tally.bypass += 1
        if (
            annotation.asked
            and not _is_lost(annotation)
            and (annotation.rejection is not None or annotation.route is Route.REASONING)
        ):
            self._recent.append(annotation.rejection is not None)

    def _chunk(self, items: list[WorkItem], annotations: list[Annotation]) -> Chunk:
        records, rejections = list[Record](), list[Rejection]()
        owed = prompt_tokens = completion_tokens = 0
        unread = [annotation.unread for annotation in annotations if annotation.unread is not None]
        for item, annotation in zip(items, annotations, strict=True):
            record, rejection = self._rows.rows(annotation)
            if record is not None:
                records.append(record)
            if rejection is not None:
                rejections.append(rejection)
            if item.conflict is not None and rejection is None:
                rejections.append(self._conflict(annotation, item.conflict))
            answers = annotation.answers
            owed += annotation.rejection is not None and any(answer.is_owed for answer in annotation.last_answers)
            prompt_tokens += sum([answer.prompt_tokens for answer in answers])
            completion_tokens += sum([answer.completion_tokens for answer in answers])
        return Chunk(
            records_table(records),
            rejections_table(rejections),
            np.array([near_duplicate_key(record) for record in records], np.int64),
            owed,
            {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
            {image.path: (str(image.reason), state_of(self._store, image.path, image.reason)) for image in unread},
            sum(annotation.rejection is not None and _is_lost(annotation) for annotation in annotations),
        )

    def _conflict(self, annotation: Annotation, line: bytes) -> Rejection:
        other = Annotation(annotation.id, Query.model_validate_json(line), annotation.split, annotation.instruction, None)
        return self._rows.rejected(other, Stage.INPUT, InputReason.CONFLICTING_ROWS, "another row of this id came first")

    def _targets(self, queries: list[Query], split: Split) -> list[Candidate | None]:
        targets: list[Candidate | None] = [None] * len(queries)
        for task in {query.dataset_task for query in queries}:
            of_task = [i for i, query in enumerate(queries) if query.dataset_task == task]
            first = self._lookup.first_held(task, split, [queries[i].pos_cand_list for i in of_task])
            for i, target in zip(of_task, first, strict=True):
                targets[i] = target
        return targets

    async def _keep_up(self) -> None:
        """Periodically syncs answers to disk and reads newly sealed segments."""
        waited = 0.0
        while True:
            await asyncio.sleep(_TICK_S)
            waited += _TICK_S
            if self._ledger is None:
                continue
            try:
                self._ledger.collect()
                if waited >= self.config.ledger.fsync_s:
                    waited = 0.0
                    await asyncio.to_thread(self._ledger.sync)
            except Exception as error:  # whatever the cause, no more requests may be sent
                remedy = f"{explained(error, 'fix the cause').remedy}; then run again"
                other = LedgerError(f"the ledger cannot be written: {error!r}", remedy)
                self._trouble = error if isinstance(error, CotError) else other
                self._stopping = True
                logger.exception("%s", self._trouble)
                return
