"""The ground truth of a world: what its pictures show and what its queries mean.

For tests and quality measurements only. No module of the pipeline or the trainer may read it (a test enforces this).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from pocket.world.reasoning_kinds import ReasoningKind
from schemas.mbeir import Split

QUERIES: Final = "queries.jsonl"
CANDIDATES: Final = "candidates.jsonl"
IMAGES: Final = "images.jsonl"


Unseen = Literal["", "entity", "question"]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class QueryTruth(_Row):
    """Args:
    target: canonical content of the target; candidates with this content are correct.
    answer: the short answer (an entity, a fact) or, for pictures, their canonical description.
    steps: the steps of a correct trace: reference, operation, or the facts on the way.
    unseen: what no training query has: this entity, or (for a known entity) this question. Empty: neither.
    """

    split: Split
    qid: str
    dataset_task: str
    why: ReasoningKind
    target: str
    answer: str
    steps: tuple[str, ...] = ()
    unseen: Unseen = ""

    @property
    def needs_reasoning(self) -> bool:
        return self.why.needs_reasoning


class CandidateTruth(_Row):
    did: str
    content: str


class ImageTruth(_Row):
    """`content` is the canonical description of what the picture shows."""

    path: str
    content: str


class Truth(_Row):
    queries: tuple[QueryTruth, ...]
    candidates: tuple[CandidateTruth, ...]
    images: tuple[ImageTruth, ...]


def load_truth(directory: Path) -> Truth:
    """Reads ``OUT/truth``."""

    def lines(name: str) -> list[str]:
        return (directory / name).read_text(encoding="utf-8").splitlines()

    return Truth(
        queries=tuple(QueryTruth.model_validate_json(line) for line in lines(QUERIES)),
        candidates=tuple(CandidateTruth.model_validate_json(line) for line in lines(CANDIDATES)),
        images=tuple(ImageTruth.model_validate_json(line) for line in lines(IMAGES)),
    )
