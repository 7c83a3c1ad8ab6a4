"""Annotations without a build: no ledger, nothing written."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.annotate.annotation import Annotation
from pipeline.annotate.worker import AnnotationWorker
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.work_list import WorkItem, collect
from pipeline.progress_meter import quiet_progress
from pipeline.serving.hosted import Tell, hosted_pair, silent
from pipeline.serving.teacher_servers import Endpoints
from schemas.config import BuildConfig
from schemas.errors import ConfigError
from schemas.mbeir import Query


def annotate_queries(
    config: BuildConfig, queries: Sequence[Query] | None = None, *, limit: int | None = None, tell: Tell = silent
) -> list[Annotation]:
    """Annotates some queries as a build would: assess, route, reason, screen, verify. Stores no answer.

    config: a build's settings (`pipeline.config.load_config`). Managed teachers and verifiers are started (or reused, if
        they already run) and stopped at the end.
    queries: rows of M-BEIR's query files, of the split `input.split`.
    limit: instead of `queries`: this many of the split, sampled evenly.
    tell: called with what the function waits for.

    An `Annotation` has the prompts, answers, assessment, route and attempts of its query, and `rejection` if the build would
    reject it. In the order given (the dataset's, for `limit`). Raises ConfigError for both or neither of `queries` and
    `limit`; InputError for an M-BEIR directory that lacks the queries; HostingError for a server that does not start.
    Do not call it from a running event loop.
    """
    if (queries is None) == (limit is None):
        raise ConfigError("annotate_queries takes queries or a limit", "give one of them")
    items = _drawn(config, limit) if limit is not None else _items(config, queries or ())
    if not items:
        return []
    with hosted_pair(config, tell=tell) as endpoints:
        return asyncio.run(annotations_of(config, endpoints, items))


async def preview_annotations(config: BuildConfig, endpoints: Endpoints) -> list[Annotation]:
    """Annotates the queries of a build with this config, in order."""
    return await annotations_of(config, endpoints, _drawn(config, config.input.limit))


async def annotations_of(config: BuildConfig, endpoints: Endpoints, items: list[WorkItem]) -> list[Annotation]:
    worker = AnnotationWorker(config, None)
    await worker.connect(endpoints)
    try:
        annotations = worker.annotations(items)
        await asyncio.gather(*(worker.annotator.annotate(annotation) for annotation in annotations))
    finally:
        await worker.close()
    return annotations


def _drawn(config: BuildConfig, limit: int | None) -> list[WorkItem]:
    chosen = config.input.model_copy(update={"limit": limit})
    with tempfile.TemporaryDirectory() as scratch:
        with quiet_progress():
            work = collect(Layout.open(config.mbeir), chosen, rejects=Path(scratch) / "malformed.jsonl")
        return work.read(0, len(work))


def _items(config: BuildConfig, queries: Sequence[Query]) -> list[WorkItem]:
    split = config.input.record_split
    return [WorkItem(query.model_dump_json().encode(), split, 1, None) for query in queries]
