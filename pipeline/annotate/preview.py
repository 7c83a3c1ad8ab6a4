"""Journeys without a build: no Ray, no ledger, nothing written."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from pipeline.annotate.steps import Journey
from pipeline.annotate.worker import Annotator, Endpoints
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.work_list import collect
from schemas.config import BuildConfig
from schemas.hosting import Endpoint


async def journeys(config: BuildConfig, endpoints: tuple[Endpoint, ...]) -> list[Journey]:
    """The journeys of the queries that the config's limit leaves, in order. The verifier's endpoints are the config's own."""
    with tempfile.TemporaryDirectory() as scratch:
        work = collect(Layout.open(config.mbeir), config.input, rejects=Path(scratch) / "malformed.jsonl", quiet=True)
        annotator = Annotator(config, None)
        verifier = config.verifier.endpoints if config.verifier is not None else endpoints
        await annotator.connect(Endpoints(endpoints, verifier or endpoints))
        try:
            found = annotator.journeys(work.read(0, len(work)))
            await asyncio.gather(*(annotator.guide.travel(journey) for journey in found))
        finally:
            await annotator.close()
    return found
