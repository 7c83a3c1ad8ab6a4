"""The Ray actor around an annotation worker.

The first call makes the worker. Of an actor whose `__init__` fails Ray keeps no exception, only a text; what a call raises
reaches the driver as it is.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.annotate.worker import AnnotationWorker
from pipeline.annotate.worker_stats import WorkerStats
from pipeline.dataset.staging import Chunk
from pipeline.mbeir.work_list import WorkItem
from pipeline.serving.environ import Carried
from pipeline.serving.teacher_servers import Endpoints
from schemas.config import BuildConfig


class WorkerActor:
    """Has the methods of an `AnnotationWorker` that the driver calls."""

    def __init__(self, config: BuildConfig, ledger: str, *, alone: bool, environment: Carried, log: Path) -> None:
        self._config, self._ledger = config, ledger
        self._alone, self._environment, self._log = alone, environment, log
        self._made: AnnotationWorker | None = None
        self._failure: Exception | None = None

    @property
    def _worker(self) -> AnnotationWorker:
        if self._failure is not None:  # it is not tried again for each call that waits
            raise self._failure
        if self._made is None:
            try:
                self._made = AnnotationWorker(
                    self._config, self._ledger, alone=self._alone, environment=self._environment, log=self._log
                )
            except Exception as error:
                self._failure = error
                raise
        return self._made

    async def connect(self, endpoints: Endpoints) -> None:
        await self._worker.connect(endpoints)

    async def annotate(self, items: list[WorkItem]) -> Chunk | None:
        return await self._worker.annotate(items)

    async def stats(self) -> WorkerStats:
        return await self._worker.stats()

    async def drain(self) -> None:
        if self._made is not None:
            await self._made.drain()

    async def close(self) -> None:
        if self._made is not None:
            await self._made.close()
