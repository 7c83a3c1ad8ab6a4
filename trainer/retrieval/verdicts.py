"""The verifier's word on mined negatives: does a candidate support the answer that the query's trace came to?

A candidate of which it says yes is a right answer that nobody listed. The question is that of a build's verification, with the
candidate in the positive's place; it costs one token, whose log-probabilities give P(yes). Queries without an answer, those
that bypass, cannot be asked about.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from pipeline.annotate.annotation import Annotation
from pipeline.annotate.teacher_clients import TeacherClients
from pipeline.annotate.verification import Verification
from pipeline.ledger.ledger import Ledger, recover
from pipeline.mbeir.image_store import ImageProblem
from pipeline.mbeir.stores import build_store
from pipeline.serving.teacher_servers import Endpoints
from pipeline.teacher.cached_client import CachedTeacherClient
from pipeline.teacher.client import TeacherClient
from pipeline.teacher.request_images import ImageEncoder
from schemas.config import BuildConfig
from schemas.errors import InputError
from schemas.mbeir import Candidate, Query
from trainer.data.dataset import Item

logger = logging.getLogger(__name__)

_AT_ONCE: Final = 1_024
"""Questions that are prepared together; the client limits how many are in flight."""


class Pair(NamedTuple):
    """A question: does the candidate support the query's answer?"""

    item: Item
    candidate: Candidate


def judge_pairs(build: BuildConfig, endpoints: Endpoints, pairs: Sequence[Pair], ledger: Path) -> list[float | None]:
    """P(yes) of each pair; None without an answer of the query's, of the verifier's, or without a readable image.

    build: whose verifier is asked, with its prompts. ledger: a directory; what it has an answer for is not asked again.
    Raises InputError if the verifier gives no answer at all. Do not call it from a running event loop.
    """
    judged = asyncio.run(_judge(build, endpoints, pairs, ledger))
    asked = [p for pair, p in zip(pairs, judged, strict=True) if pair.item.answer]
    if asked and all(p is None for p in asked):
        raise InputError(
            f"the verifier gave no usable answer to any of {len(asked):,} questions", "see what `mbeir-cot teacher check` says"
        )
    logger.info("%d of %d pairs judged", sum(p is not None for p in judged), len(pairs))
    return judged


async def _judge(build: BuildConfig, endpoints: Endpoints, pairs: Sequence[Pair], ledger: Path) -> list[float | None]:
    clients = TeacherClients(build, alone=False)
    clients.connect(endpoints)
    journals = _journals(build, ledger)
    recover(ledger, journals)
    answers = Ledger(ledger, journals=journals)

    async def client() -> TeacherClient:
        return await clients.get("verifier")

    config = build.verifier or build.teacher
    verifier = Verification(build, CachedTeacherClient(config, answers, ImageEncoder.of(config, build_store(build)), client))

    async def ask(pair: Pair) -> float | None:
        if not pair.item.answer:
            return None
        try:
            return await verifier.confidence(_annotation(pair.item), pair.item.answer, pair.candidate)
        except ImageProblem:
            return None

    judged: list[float | None] = []
    try:
        for start in range(0, len(pairs), _AT_ONCE):
            judged += await asyncio.gather(*map(ask, pairs[start : start + _AT_ONCE]))
            answers.collect()
    finally:
        await clients.close()
        answers.close()
    return judged


def _journals(build: BuildConfig, ledger: Path) -> Path | None:
    """Where `ledger.journal` puts them: in a directory of their own, or recovery would take a build's for these."""
    if build.ledger.journal is None:
        return None
    return build.ledger.journal / f"verdicts-{hashlib.sha256(str(ledger.absolute()).encode()).hexdigest()[:12]}"


def _annotation(item: Item) -> Annotation:
    query = Query(
        qid=item.qid,
        query_txt=item.text,
        query_img_path=item.image,
        query_modality=item.task.query_modality,
        pos_cand_list=item.positives,
        task_id=item.task.task_id,
    )
    return Annotation(item.id, query, "train", item.instruction, None)


def pass_over_right(row: Mapping[str, Any], judged: Sequence[float | None], threshold: float) -> dict[str, Any]:
    """A row of `mined.parquet` with P(yes) of each negative, without those above the threshold. judged: in its order."""
    kept = [i for i, p in enumerate(judged) if p is None or p <= threshold]
    return {
        **row,
        "mined_negatives": [row["mined_negatives"][i] for i in kept],
        "scores": [row["scores"][i] for i in kept],
        "yes": [judged[i] for i in kept],
    }
