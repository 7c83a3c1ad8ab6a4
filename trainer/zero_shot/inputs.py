"""Queries and candidates of the suite as the embedder takes them: rows of M-BEIR's form, and a store that opens its pictures.

A picture is named by one text that holds what `Picture` does, so that rows go to any worker as those of M-BEIR do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from pipeline.mbeir.image_store import MAX_RATIO, ImageProblem, ImageStore
from schemas.content import ContentPart
from schemas.errors import InputError
from schemas.mbeir import Modality
from schemas.record import ImageReason
from trainer.embedding.embed import StudentQuery
from trainer.zero_shot.suite_images import cut, find
from trainer.zero_shot.tasks import Candidate, Picture, Query


def picture_name(picture: Picture) -> str:
    """The path alone, where that is all there is to say."""
    if not picture.others and picture.box is None:
        return picture.path
    return json.dumps([picture.path, picture.others, picture.box])


def picture_of(name: str) -> Picture:
    if not name.startswith('["'):
        return Picture(name)
    path, others, box = json.loads(name)
    return Picture(path, tuple(others), tuple(box) if box is not None else None)


def digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class SuiteStore(ImageStore):
    """Opens pictures by `picture_name`, below the suite's root."""

    def __init__(self, root: Path, image_roots: Sequence[Path] = ()) -> None:
        super().__init__(root, allowed_roots=tuple(image_roots), max_ratio=MAX_RATIO)
        self._roots = tuple(image_roots)

    def __reduce__(self) -> tuple[object, ...]:
        return SuiteStore, (self.root, self._roots)

    def open(self, relative: str, content: bytes | None = None) -> Image.Image:
        picture = picture_of(relative)
        image = super().open(find(self, picture), content)
        if picture.box is None:
            return image
        try:
            return cut(image, picture.box)
        except (ValueError, SystemError, MemoryError) as error:
            raise ImageProblem(
                ImageReason.UNREADABLE, picture.path, f"its box {picture.box} cannot be cut ({error})"
            ) from error


def student_query(query: Query) -> StudentQuery:
    """One picture and one text go where M-BEIR's queries have them; more keep their order."""
    texts = [part for part in query.parts if isinstance(part, str)]
    pictures = query.pictures
    if len(pictures) > 1 or len(texts) > 1:
        parts = tuple(
            ContentPart(text=one) if isinstance(one, str) else ContentPart(image=picture_name(one)) for one in query.parts
        )
        return StudentQuery(query.id, query.instruction, None, None, parts)
    image = picture_name(pictures[0]) if pictures else None
    return StudentQuery(query.id, query.instruction, texts[0] if texts else None, image)


class TaskPool:
    """The candidates of a task as a pool: each place has an id of its own, also where the published list names one twice."""

    def __init__(self, name: str, candidates: Iterable[Candidate]) -> None:
        """Raises InputError for a candidate that is more than a text and a picture."""
        self.path = Path(name)
        rows = [_row(name, at, one) for at, one in enumerate(candidates)]
        self.table = pa.Table.from_pylist(rows, _SCHEMA)
        self.sha256 = digest(rows)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def ids(self) -> NDArray[np.int64]:
        """Of dids: `hash_did` of dataset 0 is the number itself."""
        return np.arange(1, len(self) + 1, dtype=np.int64)

    def fetch_table(self, positions: NDArray[np.int64]) -> pa.Table:
        return self.table.take(pa.array(positions))


_SCHEMA = pa.schema([("did", pa.string()), ("txt", pa.string()), ("img_path", pa.string()), ("modality", pa.string())])


def _row(name: str, at: int, candidate: Candidate) -> dict[str, str | None]:
    texts = [part for part in candidate.parts if isinstance(part, str)]
    pictures = candidate.pictures
    if len(texts) > 1 or len(pictures) > 1 or not candidate.parts:
        raise InputError(f"{name}: candidate {candidate.id} is no text, picture, or both", "take the file as it is published")
    modality = Modality.IMAGE_TEXT if texts and pictures else Modality.IMAGE if pictures else Modality.TEXT
    shown = picture_name(pictures[0]) if pictures else None
    return {"did": f"0:{at + 1}", "txt": texts[0] if texts else None, "img_path": shown, "modality": modality.value}
