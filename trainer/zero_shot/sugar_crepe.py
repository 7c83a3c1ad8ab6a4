"""SugarCrepe: of two captions, the one that describes the image. Seven parts.

Files: `sugar-crepe/data/{part}.json`, {key: {filename, caption, negative_caption}}; images of COCO val2017. Keys are not
consecutive (swap_obj has no "108").
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from trainer.zero_shot.captions import one_of_two
from trainer.zero_shot.reading import Record, read_json
from trainer.zero_shot.tasks import Counts, Dataset, Picture, Task

PARTS: Final = {
    "add_att": 692,
    "add_obj": 2_062,
    "replace_att": 788,
    "replace_obj": 1_652,
    "replace_rel": 1_406,
    "swap_att": 666,
    "swap_obj": 245,
}
"""Each with its number of items."""


def _file(part: str) -> str:
    return f"sugar-crepe/data/{part}.json"


def tasks(root: Path) -> tuple[Task, ...]:
    return tuple(
        one_of_two(f"sugar-crepe/{part}", "SugarCrepe", partial(_choices, root / _file(part)))
        for part in PARTS
        if (root / _file(part)).is_file()
    )


def _choices(path: Path) -> Iterator[tuple[str, Picture, str, str]]:
    for key, content in read_json(path, dict).items():
        record = Record(path, f"key {key!r}", content)
        picture = Picture(f"sugar-crepe/images/val2017/{record.get('filename', str)}")
        yield key, picture, record.get("caption", str), record.get("negative_caption", str)


SUGAR_CREPE: Final = Dataset(
    name="sugar-crepe",
    columns={"SugarCrepe": "accuracy"},
    about="an image and two captions, one of them changed in an attribute, object or relation",
    files=tuple(_file(part) for part in PARTS),
    source="https://github.com/RAIVNLab/sugar-crepe; images: COCO val2017",
    licence="MIT",
    open=tasks,
    published={f"sugar-crepe/{part}": Counts(number, 2 * number) for part, number in PARTS.items()},
)
