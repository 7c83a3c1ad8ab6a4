"""Annotations without a build: no Ray, no ledger, nothing written."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from pipeline.annotate.annotation import Annotation
from pipeline.annotate.worker import AnnotationWorker
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.work_list import collect
from pipeline.serving.teacher_servers import Endpoints
from schemas.config import BuildConfig
from schemas.hosting import Endpoint


async def preview_annotations(config: BuildConfig, endpoints: tuple[Endpoint, ...]) -> list[Annotation]:
    """Annotates the queries that the config's limit leaves, in order. The verifier's endpoints are the config's own."""
    with tempfile.TemporaryDirectory() as scratch:
        work = collect(Layout.open(config.mbeir), config.input, rejects=Path(scratch) / "malformed.jsonl", quiet=True)
        worker = AnnotationWorker(config, None)
        verifier = config.verifier.endpoints if config.verifier is not None else endpoints
        await worker.connect(Endpoints(endpoints, verifier or endpoints))
        try:
            found = worker.annotations(work.read(0, len(work)))
            await asyncio.gather(*(worker.annotator.annotate(annotation) for annotation in found))
        finally:
            await worker.close()
    return found
