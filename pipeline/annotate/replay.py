"""Reconstructs annotations of a finished build from its ledger: the prompts and raw answers behind its rows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from pipeline.annotate.annotation import Annotation
from pipeline.annotate.steps import Annotator
from pipeline.ledger.ledger import Ledger
from pipeline.mbeir.candidates import Row, first_positives
from pipeline.mbeir.stores import build_store
from pipeline.teacher.cached_client import CachedTeacherClient, Stopped
from pipeline.teacher.client import TeacherClient
from pipeline.teacher.request_images import ImageEncoder
from pipeline.traces.token_counts import token_counter
from schemas.config import BuildConfig
from schemas.mbeir import Query
from schemas.teacher_config import TeacherConfig


def replay(settings: BuildConfig, rows: Sequence[Row]) -> dict[str, Annotation]:
    """Row id -> annotation, for records or rejections. Sends no request; rows without answers in the ledger are left out."""
    store = build_store(settings)
    ledger = Ledger(settings.ledger.location or str(settings.out / "ledger"), journals=settings.ledger.journal)

    async def no_client() -> TeacherClient:
        raise Stopped

    def client(teacher: TeacherConfig) -> CachedTeacherClient:
        return CachedTeacherClient(teacher, ledger, ImageEncoder.of(teacher, store), no_client)

    teacher = client(settings.teacher)
    verifier = client(settings.verifier) if settings.verifier is not None else teacher
    annotator = Annotator(settings, teacher, verifier, token_counter(settings))
    targets = first_positives(settings, rows)
    annotations: dict[str, Annotation] = {}

    async def annotate() -> None:
        for row in rows:
            annotation = Annotation(row["id"], query_of(row), row["split"], row["instruction"], targets.get(row["id"]))
            try:
                annotations[row["id"]] = await annotator.annotate(annotation)
            except Stopped:
                continue

    asyncio.run(annotate())
    return annotations


def query_of(row: Row) -> Query:
    """The query of a dataset's row, without the sources' own metadata."""
    return Query.model_validate(
        {
            "qid": row["qid"],
            "query_txt": row["query_text"],
            "query_img_path": row["query_image"],
            "query_modality": row["query_modality"],
            "pos_cand_list": list(row["positives"]),
            "neg_cand_list": list(row["hard_negatives"]),
            "task_id": row["task_id"],
        }
    )
