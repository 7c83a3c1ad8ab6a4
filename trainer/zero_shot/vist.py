"""VIST: a story of captions and images, of which the last image is to be found.

Files: `vist/sis/val.story-in-sequence.json`, annotations[[{story_id, text, photo_flickr_id}]]; images
`vist/images/val/{id}` with .jpg, .png or .gif. Stories and sentences are taken in the order of the file, as LamRA does; the
order that the workers arranged is not used. The story's first images cannot be found; a story whose last image is one of
them cannot be answered at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from trainer.zero_shot.reading import Record, read_json
from trainer.zero_shot.tasks import Candidate, Counts, Dataset, Measure, Picture, Query, Task

INSTRUCTION: Final = (
    "I will provide you with a series of images and captions from a story, and I need you to retrieve the image corresponding "
    "to the last caption."
)
_FILE: Final = "vist/sis/val.story-in-sequence.json"


def tasks(root: Path) -> tuple[Task, ...]:
    if not (root / _FILE).is_file():
        return ()
    path = root / _FILE
    return (Task("vist", "VIST", Measure.HITS, (1, 5, 10), partial(_queries, path), partial(_candidates, path)),)


def _sentences(path: Path) -> Iterator[Record]:
    whole = Record(path, "the file", read_json(path, dict))
    for at, group in enumerate(whole.each("annotations", list)):
        if len(group) != 1:
            raise whole.wrong(f"annotations[{at}] is to hold one sentence, not {len(group)}")
        yield Record(path, f"annotations[{at}]", group[0])


def _picture(identifier: str) -> Picture:
    first, *others = (f"vist/images/val/{identifier}.{suffix}" for suffix in ("jpg", "png", "gif"))
    return Picture(first, others=tuple(others))


def _queries(path: Path) -> Iterator[Query]:
    stories: dict[str, list[tuple[str, str]]] = {}
    for sentence in _sentences(path):
        told = stories.setdefault(sentence.get("story_id", str), [])
        told.append((sentence.get("text", str), sentence.get("photo_flickr_id", str)))
    for story, told in stories.items():
        *before, (last, target) = told
        parts = [part for text, image in before for part in (text, _picture(image))]
        seen = tuple(image for _, image in before)
        yield Query(story, (*parts, last), (target,), instruction=INSTRUCTION, excluded=seen)


def _candidates(path: Path) -> Iterator[Candidate]:
    """The images of all stories, sorted by id as texts."""
    for identifier in sorted({sentence.get("photo_flickr_id", str) for sentence in _sentences(path)}):
        yield Candidate(identifier, (_picture(identifier),))


VIST: Final = Dataset(
    name="vist",
    columns={"VIST": "R@1"},
    about="four captions and images of a story and a fifth caption",
    files=(_FILE,),
    source="https://visionandlanguage.net/VIST/dataset.html (stories of images in sequence); images: Flickr",
    licence="not checked",
    open=tasks,
    published={"vist": Counts(4_990, 8_034)},
)
