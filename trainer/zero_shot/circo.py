"""CIRCO: an everyday image and a change, with several right answers in COCO unlabeled2017.

Files: `circo/annotations/{val,test}.json`, lists of {id, reference_img_id, relative_caption, …} with {target_img_id,
gt_img_ids} in val; `circo/annotations/image_info_unlabeled2017.json` of COCO, whose images are the candidates in its order.
The reference image stays among the candidates, and `shared_concept` is not used: with it, it is another task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from schemas.errors import InputError
from trainer.zero_shot.reading import Record, read_json, records
from trainer.zero_shot.tasks import Candidate, Counts, Dataset, Measure, Picture, Query, Task

CHANGE: Final = "I'm looking for a similar everyday image with the described changes."
SUBMITTED: Final = 50
"""Images that the authors' server takes for each query."""

_INFO: Final = "circo/annotations/image_info_unlabeled2017.json"
_SPLITS: Final = {"val": 220, "test": 800}
_POOL: Final = 123_403


def _file(split: str) -> str:
    return f"circo/annotations/{split}.json"


def _picture(name: str) -> Picture:
    return Picture(f"circo/images/unlabeled2017/{name}")


def tasks(root: Path) -> tuple[Task, ...]:
    return tuple(
        Task(
            f"circo/{split}",
            "CIRCO",
            Measure.AVERAGE_PRECISION,
            (5, 10, 25, 50),
            partial(_queries, root / _file(split), labelled=split == "val"),
            partial(_candidates, root / _INFO),
            labelled=split == "val",
        )
        for split in _SPLITS
        if (root / _file(split)).is_file()
    )


def _queries(path: Path, *, labelled: bool) -> Iterator[Query]:
    for record in records(path):
        yield Query(
            str(record.get("id", int)),
            (_picture(f"{record.get('reference_img_id', int):012d}.jpg"), record.get("relative_caption", str)),
            _positives(record) if labelled else (),
            instruction=CHANGE,
        )


def _positives(record: Record) -> tuple[str, ...]:
    target, truths = record.get("target_img_id", int), record.each("gt_img_ids", int)
    if not truths or truths[0] != target:
        raise record.wrong(f"'gt_img_ids' is to begin with the target {target}")
    return tuple(map(str, truths))


def _candidates(path: Path) -> Iterator[Candidate]:
    for image in Record(path, "the file", read_json(path, dict)).inners("images"):
        yield Candidate(str(image.get("id", int)), (_picture(image.get("file_name", str)),))


def submission(ranked: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    """What the authors' server takes: for each query's id the ids of its 50 best images, as integers and without repetition."""
    for query, ids in ranked.items():
        if len(ids) < SUBMITTED or len(set(ids[:SUBMITTED])) < SUBMITTED:
            raise InputError(f"CIRCO's query {query} has fewer than {SUBMITTED} different images", "rank the whole pool")
    return {query: [int(one) for one in ids[:SUBMITTED]] for query, ids in ranked.items()}


CIRCO: Final = Dataset(
    name="circo",
    columns={"CIRCO": "mAP@5"},
    about="an image and a change; several images of 123,403 are right",
    files=(_file("val"), _file("test"), _INFO),
    source="https://github.com/miccunifi/CIRCO; image_info_unlabeled2017.json and images: COCO unlabeled2017",
    licence="CC-BY-NC-4.0",
    open=tasks,
    published={f"circo/{split}": Counts(number, _POOL) for split, number in _SPLITS.items()},
)
