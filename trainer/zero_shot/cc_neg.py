"""CC-Neg: of a caption and one that negates a part of it, the one that describes the image.

Published is `ccneg_preprocessed.pt`, a pickle, which can run any program when it is loaded as usual. `convert` reads it
with torch's weights-only loader, which makes plain values and refuses all else, and writes `ccneg/ccneg_val.jsonl`: {image,
caption, negative}, one line for each of the last 40,000 entries. Only that file is read afterwards, line by line.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

import orjson

from pipeline.files.durable import replace_text
from schemas.errors import InputError
from trainer.zero_shot.captions import one_of_two
from trainer.zero_shot.reading import REMEDY, Record
from trainer.zero_shot.tasks import Counts, Dataset, Picture, Task

CONVERTED: Final = "ccneg/ccneg_val.jsonl"
EVALUATED: Final = 40_000
"""Entries at the end of the file that are scored."""

_PREFIX: Final = "/workspace/datasets/cc3m/"
"""Of its authors' machine, before each image's path."""


def tasks(root: Path) -> tuple[Task, ...]:
    path = root / CONVERTED
    return (one_of_two("cc-neg", "CC-Neg", partial(_choices, path)),) if path.is_file() else ()


def _choices(path: Path) -> Iterator[tuple[str, Picture, str, str]]:
    with path.open("rb") as lines:
        for at, line in enumerate(lines):
            try:
                record = Record(path, f"line {at + 1}", orjson.loads(line))
            except orjson.JSONDecodeError as error:
                raise InputError(f"{path}, line {at + 1}: no JSON: {error}", _AGAIN) from error
            picture = Picture(f"ccneg/{record.get('image', str)}")
            yield str(at), picture, record.get("caption", str), record.get("negative", str)


_AGAIN: Final = "write it again: mbeir-cot zero-shot convert-cc-neg ccneg_preprocessed.pt ROOT"


def convert(source: Path, root: Path) -> int:
    """Writes `ccneg/ccneg_val.jsonl` below the root from the published file; returns its number of lines."""
    content = Record(source, "the file", _loaded(source))
    paths, annotations = content.each("image_paths", str), content.inners("annotations")
    if len(paths) != len(annotations):
        raise content.wrong(f"{len(paths):,} image_paths, but {len(annotations):,} annotations")
    first = max(0, len(paths) - EVALUATED)
    rows = [
        {
            "image": _relative(source, at, paths[at]),
            "caption": annotations[at].inner("json").get("caption", str),
            "negative": annotations[at].inner("sop_data").get("negative-prompt", str).replace(",", ""),
        }
        for at in range(first, len(paths))
    ]
    target = root / CONVERTED
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_text(target, "".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE).decode() for row in rows))
    return len(rows)


def _loaded(source: Path) -> object:
    import torch  # noqa: PLC0415 (seconds, for this one file)

    if not source.is_file():
        raise InputError(f"{source} is missing", REMEDY)
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # the loader raises UnpicklingError, RuntimeError, EOFError, ValueError, …
        said = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{source} cannot be loaded as plain values: {said}",
            "it is cut off, or holds what could run a program: take the published file; never load it without weights_only",
        ) from error


def _relative(source: Path, at: int, path: str) -> str:
    relative = path.removeprefix(_PREFIX)
    if PurePosixPath(relative).is_absolute():
        raise InputError(f"{source}, image_paths[{at}]: {path!r} does not begin with {_PREFIX}", REMEDY)
    return relative


CC_NEG: Final = Dataset(
    name="cc-neg",
    columns={"CC-Neg": "accuracy"},
    about="an image and two captions, one of which negates what is to be seen",
    files=(CONVERTED,),
    source="https://huggingface.co/datasets/jaisidhsingh/ccneg, converted with `mbeir-cot zero-shot convert-cc-neg`",
    licence="not checked",
    open=tasks,
    published={"cc-neg": Counts(EVALUATED, 2 * EVALUATED)},
)
