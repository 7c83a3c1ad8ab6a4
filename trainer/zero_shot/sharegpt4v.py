"""ShareGPT4V: images of SA-1B and long captions of a model, in both directions.

Files: `sharegpt4v/datas_for_validation.json`, a list of {image_name, caption}; images in `sharegpt4v/val_data`. The i-th
caption belongs to the i-th image, also where two items show one image.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from trainer.zero_shot.captions import both_directions
from trainer.zero_shot.reading import records
from trainer.zero_shot.tasks import Counts, Dataset, Picture, Task

_FILE: Final = "sharegpt4v/datas_for_validation.json"


def tasks(root: Path) -> tuple[Task, ...]:
    return both_directions("sharegpt4v", "ShareGPT4V", partial(_pairs, root / _FILE)) if (root / _FILE).is_file() else ()


def _pairs(path: Path) -> Iterator[tuple[str, Picture, tuple[str, ...]]]:
    for at, record in enumerate(records(path)):
        yield str(at), Picture(f"sharegpt4v/val_data/{record.get('image_name', str)}"), (record.get("caption", str),)


SHAREGPT4V: Final = Dataset(
    name="sharegpt4v",
    columns={"ShareGPT4V t2i": "R@1", "ShareGPT4V i2t": "R@1"},
    about="images of all kinds and long captions, which a model wrote",
    files=(_FILE,),
    source="https://huggingface.co/datasets/code-kunkun/LamRA_Eval; images: SA-1B",
    licence="not checked",
    open=tasks,
    published={"sharegpt4v/t2i": Counts(1_000, 1_000), "sharegpt4v/i2t": Counts(1_000, 1_000)},
)
