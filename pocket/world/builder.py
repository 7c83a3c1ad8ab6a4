"""Collects the queries, candidates, pools and images of a world and their truth; keeps positives unambiguous."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from PIL import Image

from pocket.world.draw import jpeg
from pocket.world.ground_truth import CandidateTruth, ImageTruth, QueryTruth, Unseen
from pocket.world.reasoning_kinds import ReasoningKind
from schemas.mbeir import DATASET_IDS, DATASET_TASKS, SPLITS, DatasetTask, Modality, Split

ABOUT_ENTITIES: Final = ("oven", "infoseek", "webqa")
"""Datasets whose queries are about the entities of the encyclopedia; those of the others are about content drawn for them."""

VOLUME_NUMBERS: Final = 10_000
"""The ids of each further volume begin at a multiple of this. UniIR's hash takes query numbers below 500,000: 49 volumes."""

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
    unseen: Unseen = ""


@dataclass
class Book:
    """The contents of one world. Rows are dictionaries in M-BEIR's format; ids are assigned in the order of writing.

    A world of more than DEFAULT_QUERIES training queries is the default world with further volumes of training queries. What a
    volume adds is for training only, so pools and evaluation queries do not depend on the number of training queries.
    """

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
    volume: int = 0
    reserved: dict[DatasetTask, set[str]] = field(default_factory=dict)
    """Contents drawn for validation and test, where a further volume must not draw them again."""
    _qids: dict[tuple[Split, str, int], int] = field(default_factory=dict)
    _dids: dict[tuple[str, int], int] = field(default_factory=dict)
    _known: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _evaluated: set[tuple[DatasetTask, str | None, str]] = field(default_factory=set)

    def open_volume(self, rng: random.Random, train_queries: int) -> None:
        """Begins a further volume of training queries."""
        self.volume += 1
        self.rng, self.train_queries = rng, train_queries

    def count(self, task: DatasetTask, split: Split) -> int:
        """Returns the number of queries of this dataset-task in this split of the present volume."""
        if split == "train":
            weight = _TRAIN_WEIGHTS.get(task.dataset, _OTHER_WEIGHT)
            return max(4, round(self.train_queries * weight / DEFAULT_QUERIES))
        if self.volume:
            return 0
        return VAL_QUERIES if split == "val" else TEST_QUERIES

    def known(self, pool: str, content: str) -> list[str]:
        """Returns the dids with this content that were added for this pool, of whatever volume."""
        return self._known.get((pool, content), [])

    def evaluated_texts(self, task: DatasetTask) -> set[str]:
        """Returns the texts of a dataset-task's validation and test queries."""
        return {text for other, text, _ in self._evaluated if other == task and text is not None}

    def image(self, path: str, picture: Image.Image, content: str) -> str:
        """Stores a picture below ``mbeir_images/`` and returns its path from the root."""
        top, _, rest = path.partition("/")
        full = f"mbeir_images/{top}/volume{self.volume}/{rest}" if self.volume else f"mbeir_images/{path}"
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
        did = f"{DATASET_IDS[dataset]}:{self._number(self._dids, (dataset, self.volume))}"
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
        if pool is not None:
            self._known.setdefault((pool, content), []).append(did)
        if pool is None or self.volume:
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
    ) -> None:
        """Adds a query; its qid counts from 1 in each (split, dataset), as in M-BEIR.

        In a further volume a query about new content is left out if a validation or test query has the same text and target.
        """
        if self.volume and task.dataset not in ABOUT_ENTITIES and (task, txt, target.content) in self._evaluated:
            return
        qid = f"{DATASET_IDS[task.dataset]}:{self._number(self._qids, (split, task.dataset, self.volume))}"
        if split != "train":
            self._evaluated.add((task, txt, target.content))
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
                unseen=target.unseen,
            )
        )

    def _number(self, counters: dict[Any, int], key: Any) -> int:
        """Counts from 1, in each volume in a range of its own."""
        counters[key] = counters.get(key, 0) + 1
        return self.volume * VOLUME_NUMBERS + counters[key]

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
