"""Collects the queries, candidates, pools and images of a world and their truth; keeps positives unambiguous."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from PIL import Image

from pocket.world.draw import jpeg
from pocket.world.ground_truth import CandidateTruth, ImageTruth, QueryTruth
from pocket.world.reasoning_kinds import ReasoningKind
from schemas.mbeir import DATASET_IDS, DATASET_TASKS, SPLITS, DatasetTask, Modality, Split

LEAST_POOL: Final = 220
"""Smallest number of candidates in a local pool, so that five of them are 2.3%."""

_TRAIN_WEIGHTS: Final = {"cirr": 250, "fashioniq": 250, "oven": 150, "infoseek": 150}
_OTHER_WEIGHT: Final = 90
VAL_QUERIES: Final = 30
TEST_QUERIES: Final = 60
DEFAULT_QUERIES: Final = sum(_TRAIN_WEIGHTS.get(task.dataset, _OTHER_WEIGHT) for task in DATASET_TASKS)


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a query, for the truth file."""

    content: str
    why: ReasoningKind = ReasoningKind.NONE
    answer: str = ""
    steps: tuple[str, ...] = ()


@dataclass
class Book:
    """The contents of one world. Rows are dictionaries in M-BEIR's format; ids are assigned in the order of writing."""

    rng: random.Random
    train_queries: int
    queries: dict[Split, list[dict[str, Any]]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    candidates: dict[str, dict[str, Any]] = field(default_factory=dict)
    pools: dict[str, list[str]] = field(default_factory=dict)
    train_only: list[str] = field(default_factory=list)
    images: dict[str, bytes] = field(default_factory=dict)
    query_truths: list[QueryTruth] = field(default_factory=list)
    candidate_truths: list[CandidateTruth] = field(default_factory=list)
    image_truths: list[ImageTruth] = field(default_factory=list)
    _qids: dict[tuple[Split, str], int] = field(default_factory=dict)
    _dids: dict[str, int] = field(default_factory=dict)

    def count(self, task: DatasetTask, split: Split) -> int:
        """Returns the number of queries of this dataset-task in this split."""
        if split == "train":
            weight = _TRAIN_WEIGHTS.get(task.dataset, _OTHER_WEIGHT)
            return max(4, round(self.train_queries * weight / DEFAULT_QUERIES))
        return VAL_QUERIES if split == "val" else TEST_QUERIES

    def image(self, path: str, picture: Image.Image, content: str) -> str:
        """Stores a picture below ``mbeir_images/`` and returns its path from the root."""
        full = f"mbeir_images/{path}"
        if full in self.images:
            raise ValueError(f"two pictures at {full}")
        self.images[full] = jpeg(picture)
        self.image_truths.append(ImageTruth(path=full, content=content))
        return full

    def candidate(
        self,
        dataset: str,
        modality: Modality,
        content: str,
        *,
        pool: str | None,
        txt: str | None = None,
        img_path: str | None = None,
        src_content: str | None = None,
    ) -> str:
        """Adds a candidate and returns its did. `pool` names its local pool; None: for training only."""
        number = self._dids[dataset] = self._dids.get(dataset, 0) + 1
        did = f"{DATASET_IDS[dataset]}:{number}"
        row: dict[str, Any] = {
            "txt": txt,
            "img_path": img_path,
            "modality": str(modality),
            "did": did,
            "src_content": src_content,
        }
        if dataset == "visualnews":
            del row["src_content"]
        if dataset == "webqa" and modality is Modality.TEXT:
            del row["img_path"]
        self.candidates[did] = row
        self.candidate_truths.append(CandidateTruth(did=did, content=content))
        if pool is None:
            self.train_only.append(did)
        else:
            self.pools.setdefault(pool, []).append(did)
        return did

    def query(
        self,
        split: Split,
        task: DatasetTask,
        target: Target,
        positives: Sequence[str],
        *,
        txt: str | None = None,
        img_path: str | None = None,
        negatives: Sequence[str] = (),
        src_content: str | None = None,
    ) -> str:
        """Adds a query and returns its qid; numbers start again for each (split, dataset), as in M-BEIR."""
        number = self._qids[split, task.dataset] = self._qids.get((split, task.dataset), 0) + 1
        qid = f"{DATASET_IDS[task.dataset]}:{number}"
        self.queries[split].append(
            {
                "qid": qid,
                "query_txt": txt,
                "query_img_path": img_path,
                "query_modality": str(task.query_modality),
                "query_src_content": src_content,
                "pos_cand_list": list(positives),
                "neg_cand_list": list(negatives),
                "task_id": task.task_id,
            }
        )
        self.query_truths.append(
            QueryTruth(
                split=split,
                qid=qid,
                dataset_task=task.name,
                why=target.why,
                target=target.content,
                answer=target.answer or target.content,
                steps=target.steps,
            )
        )
        return qid

    def pool_size(self, pool: str) -> int:
        return len(self.pools.get(pool, ()))


class AmbiguityGuard:
    """Admits pictures and texts to a pool only if every text stays true of its own pictures only."""

    def __init__(self) -> None:
        self._contents: list[Any] = []
        self._claims: list[Any] = []

    def admits(self, content: Any, claims: Iterable[Any] = ()) -> bool:
        """Admits a content with its claims, unless another's claim would be true of it or one of its own claims of another.

        `content` must be new; claims are objects with ``matches(content)``.
        """
        claims = list(claims)
        if content in self._contents or any(claim.matches(content) for claim in self._claims):
            return False
        if any(claim.matches(other) for claim in claims for other in self._contents):
            return False
        self._contents.append(content)
        self._claims += claims
        return True


def until(draw: Callable[[], Any | None], what: str) -> Any:
    """Draws until the result is not None. Raises RuntimeError after many attempts."""
    for _ in range(10_000):
        drawn = draw()
        if drawn is not None:
            return drawn
    raise RuntimeError(f"the world is too small for another {what}: ask for fewer queries")


RIDDLES: Final = 0.25
"""Share of text queries that need a deduction."""
