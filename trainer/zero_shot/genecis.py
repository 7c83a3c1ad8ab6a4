"""GeneCIS: an image and a condition, and for each query a gallery of its own. Four tasks.

Files: `genecis/annotations/{change,focus}_object.json`, lists of {condition, reference, target, gallery} with val_image_id
(COCO val2017); `{change,focus}_attribute.json` with image_id and instance_bbox (Visual Genome), whose pictures are parts of
images. These are cut here from `genecis/VG_100K_all/{image_id}.jpg`, unless LamRA's cut ones are there:
`genecis/vg/{task}/{image_id}_{query}_{slot}.jpg`, slot 0 the reference, 1 the target, from 2 the gallery.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from trainer.zero_shot.circo import CHANGE
from trainer.zero_shot.reading import Record, records
from trainer.zero_shot.tasks import Candidate, Counts, Dataset, Measure, Picture, Query, Task

SAME_ATTRIBUTES: Final = "I'm looking for an image with the same attributes as described."
INSTRUCTIONS: Final = {
    "focus_attribute": SAME_ATTRIBUTES,
    "change_attribute": CHANGE,
    "focus_object": CHANGE,  # as LamRA asks, although nothing is changed
    "change_object": CHANGE,
}
_PUBLISHED: Final = {"change_attribute": 2_112, "focus_object": 1_960, "change_object": 1_960}


def _file(part: str) -> str:
    return f"genecis/annotations/{part}.json"


def tasks(root: Path) -> tuple[Task, ...]:
    return tuple(
        Task(
            f"genecis/{part}",
            "GeneCIS",
            Measure.GALLERY_HITS,
            (1, 2, 3),
            partial(_queries, root, part),
            partial(_candidates, root, part),
        )
        for part in INSTRUCTIONS
        if (root / _file(part)).is_file()
    )


def _slots(root: Path, part: str) -> Iterator[tuple[int, Record, list[Candidate]]]:
    """Each query's place and record, with the pictures of its slots: reference, target, gallery."""
    picture = _object if part.endswith("_object") else partial(_attribute, part, cut=(root / f"genecis/vg/{part}").is_dir())
    for at, record in enumerate(records(root / _file(part))):
        shown = [record.inner("reference"), record.inner("target"), *record.inners("gallery")]
        yield at, record, [picture(at, slot, one) for slot, one in enumerate(shown)]


def _object(_query: int, _slot: int, record: Record) -> Candidate:
    identifier = record.get("val_image_id", int)
    return Candidate(str(identifier), (Picture(f"genecis/val2017/{identifier:012d}.jpg"),))


def _attribute(part: str, query: int, slot: int, record: Record, *, cut: bool) -> Candidate:
    identifier = record.get("image_id", int)
    box = record.get("instance_bbox", list)
    if len(box) != 4 or not all(isinstance(edge, int | float) and not isinstance(edge, bool) for edge in box):
        raise record.wrong("'instance_bbox' is to be four numbers: left, top, width, height")
    if cut:
        picture = Picture(f"genecis/vg/{part}/{identifier}_{query}_{slot}.jpg")
    else:
        left, top, width, height = map(float, box)
        picture = Picture(f"genecis/VG_100K_all/{identifier}.jpg", box=(left, top, width, height))
    return Candidate(f"{identifier}_{query}_{slot}", (picture,))


def _queries(root: Path, part: str) -> Iterator[Query]:
    for at, record, (reference, target, *gallery) in _slots(root, part):
        yield Query(
            str(at),
            (*reference.parts, record.get("condition", str)),
            (target.id,),
            instruction=INSTRUCTIONS[part],
            gallery=(target.id, *(one.id for one in gallery)),
        )


def _candidates(root: Path, part: str) -> Iterator[Candidate]:
    """Each once, where it first stands in a gallery."""
    given: set[str] = set()
    for _, _, (_, *gallery) in _slots(root, part):
        for one in gallery:
            if one.id not in given:
                given.add(one.id)
                yield one


GENECIS: Final = Dataset(
    name="genecis",
    columns={"GeneCIS": "R@1"},
    about="an image and a condition (focus on, or change, an attribute or object); a gallery of 10 to 15 for each query",
    files=tuple(_file(part) for part in INSTRUCTIONS),
    source="https://github.com/facebookresearch/genecis; images: COCO val2017 and Visual Genome",
    licence="CC-BY-NC-4.0",
    open=tasks,
    published={f"genecis/{part}": Counts(number) for part, number in _PUBLISHED.items()},
)
