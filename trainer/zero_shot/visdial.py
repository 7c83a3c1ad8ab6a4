"""VisDial: a dialogue about an image finds the image.

Files: `visdial/visdial_1.0_val.json`, data.{questions, answers, dialogs[{image_id, dialog[{question, answer}]}]} where
question and answer are places in the lists; images `visdial/VisualDialog_val2018/VisualDialog_val2018_{image_id:012d}.jpg`.
The caption of the dialogue is not used. "?" and "." are added to whatever the text ends with, as FROMAGe and LamRA do.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from trainer.zero_shot.reading import Record, read_json
from trainer.zero_shot.tasks import Candidate, Counts, Dataset, Measure, Picture, Query, Task

INSTRUCTION: Final = "Find me an everyday image that matches the given dialog."

_FILE: Final = "visdial/visdial_1.0_val.json"


def tasks(root: Path) -> tuple[Task, ...]:
    if not (root / _FILE).is_file():
        return ()
    path = root / _FILE
    return (Task("visdial", "VisDial", Measure.HITS, (1, 5, 10), partial(_queries, path), partial(_candidates, path)),)


def _data(path: Path) -> Record:
    return Record(path, "the file", read_json(path, dict)).inner("data")


def _queries(path: Path) -> Iterator[Query]:
    data = _data(path)
    questions, answers = data.each("questions", str), data.each("answers", str)
    for at, dialog in enumerate(data.inners("dialogs")):
        said = []
        for turn in dialog.inners("dialog"):
            said.append(f"Q: {_text(turn, 'question', questions)}?")
            said.append(f"A: {_text(turn, 'answer', answers)}.")
        yield Query(str(at), (" ".join(said),), (str(at),), instruction=INSTRUCTION)


def _text(turn: Record, key: str, texts: list[str]) -> str:
    at = turn.get(key, int)
    if not 0 <= at < len(texts):
        raise turn.wrong(f"{key!r} is {at}, but there are {len(texts):,} {key}s")
    return texts[at]


def _candidates(path: Path) -> Iterator[Candidate]:
    for at, dialog in enumerate(_data(path).inners("dialogs")):
        name = f"VisualDialog_val2018_{dialog.get('image_id', int):012d}.jpg"
        yield Candidate(str(at), (Picture(f"visdial/VisualDialog_val2018/{name}"),))


VISDIAL: Final = Dataset(
    name="visdial",
    columns={"VisDial": "R@1"},
    about="ten questions and answers about an image",
    files=(_FILE,),
    source="https://visualdialog.org/data (v1.0, validation)",
    licence="CC-BY-4.0 by its site; not checked",
    open=tasks,
    published={"visdial": Counts(2_064, 2_064)},
)
