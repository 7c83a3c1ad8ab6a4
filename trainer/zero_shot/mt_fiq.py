"""MT-FIQ: a garment changed over several turns.

Files: `multiturnfashion/data/all.val.json`, a list of {target: [url, asin], reference: [[url, [captions], asin], …]};
`multiturnfashion/image_splits/split.all.val.json`, the asins of the candidates. Images are M-BEIR's own of FashionIQ, at
`M-BEIR/mbeir_images/fashioniq_images/{asin}.jpg`. The list names 17 asins twice; both places stay, as in LamRA, so that one
image can take two of the first five.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from schemas.errors import InputError
from trainer.zero_shot.reading import REMEDY, Record, read_json, records
from trainer.zero_shot.tasks import Candidate, Counts, Dataset, Measure, Part, Picture, Query, Task

INSTRUCTION: Final = "Find me a similar fashion image based on the following multi-round modifications."

_FILE: Final = "multiturnfashion/data/all.val.json"
_POOL: Final = "multiturnfashion/image_splits/split.all.val.json"


def tasks(root: Path) -> tuple[Task, ...]:
    if not (root / _FILE).is_file():
        return ()
    queries, candidates = partial(_queries, root / _FILE), partial(_candidates, root / _POOL)
    return (Task("mt-fiq", "MT-FIQ", Measure.HITS, (5, 8, 10), queries, candidates),)


def _picture(asin: str) -> Picture:
    return Picture(f"M-BEIR/mbeir_images/fashioniq_images/{asin}.jpg")


def _queries(path: Path) -> Iterator[Query]:
    for at, record in enumerate(records(path)):
        match record.get("target", list):
            case [_, str(asin)]:
                turns = [part for turn in record.get("reference", list) for part in _turn(record, turn)]
                yield Query(str(at), tuple(turns), (asin,), instruction=INSTRUCTION)
            case other:
                raise record.wrong(f"'target' is to be [url, asin], not {other!r}")


def _turn(record: Record, turn: Any) -> tuple[Part, Part]:
    match turn:
        case [_, [*captions], str(asin)] if all(isinstance(caption, str) for caption in captions):
            return _picture(asin), " and ".join(caption for caption in captions if caption)
    raise record.wrong(f"a turn of 'reference' is to be [url, [captions], asin], not {turn!r}")


def _candidates(path: Path) -> Iterator[Candidate]:
    for at, asin in enumerate(read_json(path, list)):
        if not isinstance(asin, str):
            raise InputError(f"{path}, item {at}: an asin is to be a text, not {type(asin).__name__}", REMEDY)
        yield Candidate(asin, (_picture(asin),))


MT_FIQ: Final = Dataset(
    name="mt-fiq",
    columns={"MT-FIQ": "R@5"},
    about="two to four images of garments, each with what is to change; mostly pairs of FashionIQ's training data",
    files=(_FILE, _POOL),
    source="https://github.com/yfyuan01/MultiturnFashionRetrieval; images: M-BEIR's fashioniq_images",
    licence="no licence file; FashionIQ, which it is made of, is CDLA",
    open=tasks,
    published={"mt-fiq": Counts(2_400, 6_274)},
)
