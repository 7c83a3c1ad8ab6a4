"""Flickr30K, the test images of Karpathy's split, in both directions.

Files: `flickr/flickr_text.json`, 5,000 captions, five for each image in order; `flickr/images/{0..999}.png`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from schemas.errors import InputError
from trainer.zero_shot.captions import both_directions
from trainer.zero_shot.reading import REMEDY, read_json
from trainer.zero_shot.tasks import Counts, Dataset, Picture, Task

_FILE: Final = "flickr/flickr_text.json"
_EACH: Final = 5


def tasks(root: Path) -> tuple[Task, ...]:
    return both_directions("flickr30k", "Flickr30K", partial(_pairs, root / _FILE)) if (root / _FILE).is_file() else ()


def _pairs(path: Path) -> Iterator[tuple[str, Picture, tuple[str, ...]]]:
    captions = read_json(path, list)
    if len(captions) % _EACH:
        raise InputError(f"{path} has {len(captions):,} captions, which is no multiple of {_EACH}", REMEDY)
    for at, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise InputError(f"{path}, item {at}: a caption is to be a text, not {type(caption).__name__}", REMEDY)
    for at in range(len(captions) // _EACH):
        yield str(at), Picture(f"flickr/images/{at}.png"), tuple(captions[_EACH * at : _EACH * (at + 1)])


FLICKR30K: Final = Dataset(
    name="flickr30k",
    columns={"Flickr30K t2i": "R@1", "Flickr30K i2t": "R@1"},
    about="photographs and short captions, five each",
    files=(_FILE,),
    source="https://huggingface.co/datasets/code-kunkun/LamRA_Eval",
    licence="not checked",
    open=tasks,
    published={"flickr30k/t2i": Counts(5_000, 1_000), "flickr30k/i2t": Counts(1_000, 5_000)},
)
