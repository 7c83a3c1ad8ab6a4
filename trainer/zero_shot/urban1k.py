"""Urban1K: street scenes and long captions, in both directions.

Files: `Urban1K/caption/{1..1000}.txt` (or `Urban1k`), of which the first line counts; `Urban1K/image/{1..1000}.jpg`. Fewer are
read as far as their numbers go, without a gap; `check` says that they are not the published thousand.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from schemas.errors import InputError
from trainer.zero_shot.captions import both_directions
from trainer.zero_shot.reading import REMEDY
from trainer.zero_shot.tasks import Counts, Dataset, Picture, Task

FOLDERS: Final = ("Urban1K", "Urban1k")
"""As LamRA's README and its script spell it."""

_NUMBER: Final = 1_000


def tasks(root: Path) -> tuple[Task, ...]:
    folder = next((name for name in FOLDERS if (root / name / "caption").is_dir()), None)
    return both_directions("urban1k", "Urban1K", partial(_pairs, root, folder)) if folder is not None else ()


def _pairs(root: Path, folder: str) -> Iterator[tuple[str, Picture, tuple[str, ...]]]:
    last = max((int(path.stem) for path in (root / folder / "caption").glob("*.txt") if path.stem.isdecimal()), default=0)
    for number in range(1, last + 1):
        yield str(number), Picture(f"{folder}/image/{number}.jpg"), (_caption(root / folder / "caption" / f"{number}.txt"),)


def _caption(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as lines:
            caption = lines.readline().strip()
    except FileNotFoundError:
        raise InputError(f"{path} is missing", REMEDY) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}", REMEDY) from error
    if not caption:
        raise InputError(f"{path}: its first line is empty", REMEDY)
    return caption


URBAN1K: Final = Dataset(
    name="urban1k",
    columns={"Urban1K t2i": "R@1", "Urban1K i2t": "R@1"},
    about="street scenes and captions of about a hundred words",
    files=("Urban1[Kk]/caption/1.txt",),
    source="https://huggingface.co/datasets/BeichenZhang/Urban1k",
    licence="not checked",
    open=tasks,
    published={"urban1k/t2i": Counts(_NUMBER, _NUMBER), "urban1k/i2t": Counts(_NUMBER, _NUMBER)},
)
