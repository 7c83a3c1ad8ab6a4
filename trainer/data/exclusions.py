"""Lists of what was left out because its image cannot be read: `X_unreadable.json` beside what was made without it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from pipeline.files.durable import replace_text
from pipeline.files.state import read_json
from pipeline.mbeir.image_store import ImageProblem
from schemas.errors import InputError

_NAMED: Final = 5


class Exclusion(NamedTuple):
    """name: a did, a qid or a record's id. image: its path below the M-BEIR root."""

    name: str
    image: str
    reason: str
    detail: str

    @classmethod
    def of(cls, name: str, problem: ImageProblem) -> Exclusion:
        return cls(name, problem.path, str(problem.reason), problem.detail)


def describe_exclusions(kind: str, exclusions: Sequence[Exclusion], file: Path) -> str:
    """A line for people, with the first few. kind: records, queries or candidates. file: where all are listed."""
    named = ", ".join(f"{one.name} ({one.image}: {one.detail})" for one in exclusions[:_NAMED])
    more = ", …" if len(exclusions) > _NAMED else ""
    return f"{kind} left out because their images cannot be read: {len(exclusions):,}: {named}{more}; listed in {file}"


def refuse_most(what: str, exclusions: Sequence[Exclusion], total: int, most: float = 1.0) -> None:
    """Raises InputError if more than the share `most` of `total` cannot be read, or nothing can."""
    count = len(exclusions)
    if count < total and count <= most * total:
        return
    said = f"{what}: {'none' if count == total else f'only {total - count:,} of {total:,}'} can be read"
    more = "" if count == total else "; data.most_unreadable allows more"
    raise InputError(
        f"{said}: {exclusions[0].image}: {exclusions[0].detail}, and so on",
        f"is the disk with the images mounted? (data.mbeir; of the zero-shot suite: its root){more}",
    )


def save_exclusions(path: Path, exclusions: Sequence[Exclusion], **more: Any) -> None:
    replace_text(path, json.dumps(more | {"left_out": [one._asdict() for one in exclusions]}, indent=1) + "\n")


def load_exclusions(path: Path) -> list[Exclusion]:
    """Empty if there is no such file: nothing was left out."""
    if not path.is_file():
        return []
    return [Exclusion(**entry) for entry in read_json(path)["left_out"]]
