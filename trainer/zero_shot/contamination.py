"""Which queries of a task a training has seen: marks for each, from the training's queries and their positives.

    pair   the query's last picture (its text, where it has none) and a right answer are a training pair; a caption and its
           picture are one whichever of them asks
    image  a picture of the query or of a right answer is in a training pair
    text   the query's whole text (a right caption, where it has none) is a text of a training pair, but for case and spaces
    near   a picture is a near-duplicate of a training picture (`perceptual_hash`); only where it is asked for

Pictures are the same where their names say so, without opening them: COCO's by number, whatever the split and folder are
called, FashionIQ's by asin, others by their path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

import numpy as np
from pydantic import BaseModel

from pipeline.dataset.training_store import training_store
from pipeline.files.durable import replace_text
from pipeline.mbeir.image_store import ImageProblem, ImageStore
from schemas.errors import InputError
from schemas.training import TrainConfig
from trainer.data.dataset import Candidates
from trainer.data.mined import training_records
from trainer.zero_shot.inputs import picture_name
from trainer.zero_shot.perceptual_hash import WORDS, Hashes, difference_hash, near_duplicates
from trainer.zero_shot.tasks import Candidate, Query, Task

_COCO: Final = re.compile(r"(?:train|val|test|unlabeled)20(?:14|15|17)(?:/|/.*_)(\d{12})\.\w+$")
_FASHIONIQ: Final = re.compile(r"fashioniq_images/(?:.*/)?([^/]+)$")
_AT_ONCE: Final = 4_096
_WITHOUT: Final = "without --near no picture is opened"


class Marks(NamedTuple):
    """Of one query."""

    pair: bool = False
    image: bool = False
    text: bool = False
    near: bool = False

    @property
    def seen(self) -> bool:
        return any(self)


MARKS: Final = (*Marks._fields, "seen")


class PicturesRead(BaseModel):
    """What was opened for near-duplicates. Of those that cannot be read, none is found."""

    pictures: int
    unreadable: int


TRAINING: Final = "the training"
"""Its name beside those of tasks in `TrainingIndex.read`."""


def count_marks(
    marked: Mapping[str, Mapping[str, Marks]], read: Mapping[str, PicturesRead] | None = None
) -> dict[str, dict[str, int]]:
    """marked: task -> query id -> marks. Returns for each task its queries, how many have each of `MARKS`, and with `read` how
    many pictures of the task and of the training could not be read."""
    unread = {name: one.unreadable for name, one in (read or {}).items()}
    return {
        task: {
            "queries": len(marks),
            **{name: sum(getattr(one, name) for one in marks.values()) for name in MARKS},
            **({"unreadable": unread.get(task, 0), "training_unreadable": unread[TRAINING]} if unread else {}),
        }
        for task, marks in marked.items()
    }


def describe_unread(read: Mapping[str, PicturesRead]) -> list[str]:
    """A line for people for each that has pictures which cannot be read."""
    return [
        f"{one.unreadable:,} of {one.pictures:,} pictures of {name} cannot be read: near-duplicates of them are not marked"
        for name, one in read.items()
        if one.unreadable
    ]


def write_marks(path: Path, marked: Mapping[str, Mapping[str, Marks]]) -> None:
    """Writes each query's marks as a JSON line."""
    lines = [
        json.dumps({"task": task, "query": identifier, **marks._asdict()}) + "\n"
        for task, of_task in marked.items()
        for identifier, marks in of_task.items()
    ]
    replace_text(path, "".join(lines))


class PairSide(NamedTuple):
    """One side of a pair."""

    text: str | None = None
    images: tuple[str, ...] = ()
    """Their paths."""


def image_key(path: str) -> str:
    """Equal for the same picture of COCO or FashionIQ in the folders of M-BEIR and of the suite."""
    if (coco := _COCO.search(path)) is not None:
        return f"coco/{int(coco[1])}"
    if (garment := _FASHIONIQ.search(path)) is not None:
        return f"fashioniq/{PurePosixPath(garment[1]).stem}"
    return path.removeprefix("M-BEIR/")


def text_key(text: str) -> str:
    return " ".join(text.casefold().split())


class TrainingIndex:
    """What a training shows: pictures, texts and pairs, as 8-byte digests. Two different ones agree with probability 1e-7 in a
    million."""

    def __init__(self) -> None:
        self._pairs: set[bytes] = set()
        self._images: set[bytes] = set()
        self._texts: set[bytes] = set()
        self._hashes: Hashes | None = None
        self.read: dict[str, PicturesRead] = {}
        """What was opened for near-duplicates: of `TRAINING`, and of each task that was marked."""

    @classmethod
    def of(cls, config: TrainConfig, *, near: bool = False) -> TrainingIndex:
        """`near`: also opens every picture of the training; those that cannot be read are counted in `read`.

        Raises InputError if none of them can be read.
        """
        index, paths = cls(), set[str]()
        records = training_records(config.data)
        candidates = Candidates(config.data.mbeir, records.split, config.data.candidate_cache)
        for start in range(0, len(records), _AT_ONCE):
            items = [records.item(at) for at in range(start, min(start + _AT_ONCE, len(records)))]
            dids = list(dict.fromkeys(did for item in items for did in item.positives))
            positives = {
                one.did: PairSide(
                    one.txt if one.modality.has_text else None,
                    (one.img_path,) if one.img_path and one.modality.has_image else (),
                )
                for one in candidates.fetch(dids)
            }
            for item in items:
                parts = item.parts
                texts = [part.text for part in parts if part.text] if parts else [item.text or ""]
                images = tuple(part.image for part in parts if part.image) if parts else (item.image,) if item.image else ()
                right = [positives[did] for did in item.positives]
                index.add(PairSide(" ".join(texts), images), right)
                paths.update(images)
                paths.update(path for one in right for path in one.images)
        if near:
            remedy = f"is the disk with the images mounted? (data.mbeir, {config.data.mbeir}); {_WITHOUT}"
            hashed = index._open(TRAINING, training_store(config), paths, remedy)
            index._hashes = np.stack(list(hashed.values())) if hashed else np.zeros((0, WORDS), np.uint64)
        return index

    def add(self, query: PairSide, positives: Sequence[PairSide]) -> None:
        for one in (query, *positives):
            self._images.update(_digest(image_key(path)) for path in one.images)
            if one.text and text_key(one.text):
                self._texts.add(_digest(text_key(one.text)))
        self._pairs.update(_pairs(query, positives))

    def marks(self, task: Task, store: ImageStore | None = None) -> dict[str, Marks]:
        """Query id -> its marks. `store`: where the task's pictures are, for near-duplicates."""
        wanted = {name for query in task.queries() for name in query.positives}
        right = {one.id: one for one in task.candidates() if one.id in wanted}
        near = self._near(task, right, store) if store is not None and self._hashes is not None else set()
        return {
            query.id: self._marks(query, [right[one] for one in query.positives if one in right], near)
            for query in task.queries()
        }

    def _marks(self, query: Query, right: Sequence[Candidate], near: set[str]) -> Marks:
        asked, answers = _shown(query), [_shown(one) for one in right]
        texts = [asked.text] if asked.text else [one.text for one in answers if one.text]
        sides: tuple[Query | Candidate, ...] = (query, *right)
        pictures = [picture_name(one) for each in sides for one in each.pictures]
        return Marks(
            not self._pairs.isdisjoint(_pairs(asked, answers)),
            any(_digest(image_key(path)) in self._images for one in (asked, *answers) for path in one.images),
            any(_digest(text_key(text)) in self._texts for text in texts),
            not near.isdisjoint(pictures),
        )

    def _near(self, task: Task, right: dict[str, Candidate], store: ImageStore) -> set[str]:
        shown: Iterable[Query | Candidate] = (*task.queries(), *right.values())
        names = {picture_name(one) for each in shown for one in each.pictures}
        hashed = self._open(task.name, store, names, f"`mbeir-cot zero-shot check ROOT` lists what is missing; {_WITHOUT}")
        if not hashed or self._hashes is None:
            return set()
        found = near_duplicates(np.stack(list(hashed.values())), self._hashes)
        return {name for name, one in zip(hashed, found.tolist(), strict=True) if one}

    def _open(self, whose: str, store: ImageStore, names: Collection[str], remedy: str) -> dict[str, Hashes]:
        """The hash of each picture that can be read. Raises InputError if there are pictures and none can be."""
        hashed, problem = _hashed(store, sorted(names))
        if problem is not None and not hashed:
            raise InputError(
                f"near-duplicates: none of the {len(names):,} pictures of {whose} can be read: {problem.problem}, and so on",
                remedy,
            )
        self.read[whose] = PicturesRead(pictures=len(names), unreadable=len(names) - len(hashed))
        return hashed


def _shown(one: Query | Candidate) -> PairSide:
    text = " ".join(part for part in one.parts if isinstance(part, str))
    return PairSide(text or None, tuple(picture.path for picture in one.pictures))


def _pairs(query: PairSide, positives: Sequence[PairSide]) -> Iterator[bytes]:
    """The last picture of a query stands for it: the last turn of several."""
    asked = _side(query)
    for one in positives:
        answer = _side(one)
        if asked and answer:
            turned = one.images and not query.images  # a caption and its picture are one pair, whichever of them asks
            yield _digest(f"{answer}\n{asked}" if turned else f"{asked}\n{answer}")


def _side(one: PairSide) -> str:
    return f"image {image_key(one.images[-1])}" if one.images else f"text {text_key(one.text)}" if one.text else ""


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=8).digest()


def _hashed(store: ImageStore, names: Sequence[str]) -> tuple[dict[str, Hashes], ImageProblem | None]:
    """(the hashes of those that can be read, what is wrong with the first other)."""

    def one(name: str) -> Hashes | ImageProblem:
        try:
            return difference_hash(store.open(name))
        except ImageProblem as problem:
            return problem

    hashed: dict[str, Hashes] = {}
    first: ImageProblem | None = None
    with ThreadPoolExecutor(4, thread_name_prefix="hashes") as threads:
        for name, made in zip(names, threads.map(one, names), strict=True):
            if isinstance(made, ImageProblem):
                first = first or made
            else:
                hashed[name] = made
    return hashed, first
