"""Pictures of exports that name them by path: if decoders would read a file differently, a plain copy is written beside the
export."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from pipeline.export.samples import Sample
from pipeline.mbeir.image_store import ImageProblem, ImageStore
from schemas.mbeir import Candidate

FOLDER: Final = "pictures"
BESIDE: Final = (
    f"pictures are in OUT/{FOLDER}: M-BEIR's own files do not show in every decoder what the teacher saw (turned by EXIF,\n"
    "transparent, 16 bits), or have another name there. Their paths lead from MBEIR to OUT, so keep or move the two together,\n"
    "and give MBEIR by its real path (`readlink -f`) if it is reached through a link: some projects resolve `..` by text alone."
)


class PortablePictures:
    """Names for pictures that show, in any decoder, what teacher and student see (`pipeline.mbeir.image_conversion`).

    A plain file keeps its path below the M-BEIR root. Others (turned by EXIF, transparent, 16 bits, several frames) are written
    as PNG; a file that exists only under the other Unicode form of its name is copied. Their paths lead from the M-BEIR root to
    the export, since the projects prefix that root to every path.

    Args:
        written: the directory that is being filled. place: its final path.
    """

    def __init__(self, images: ImageStore, written: Path, place: Path) -> None:
        self._images, self._written = images, written
        self._way = os.path.relpath(
            os.path.join(os.path.realpath(place.parent), place.name),  # noqa: PTH118
            os.path.realpath(images.root),
        )
        self.count = 0
        """Files written."""
        self._path = lru_cache(maxsize=1 << 20)(self._named)

    def of(self, sample: Sample) -> Sample:
        """The sample, all of whose pictures open, with portable paths."""
        query = sample.query._replace(image=self.path(sample.query.image))
        row: dict[str, Any] = sample.row | {"query_image": query.image} if query.image else sample.row
        positives, negatives = (tuple(map(self._candidate, side)) for side in (sample.positives, sample.negatives))
        return sample._replace(row=row, query=query, positives=positives, negatives=negatives)

    def opens(self, relative: str) -> bool:
        """Whether the file can be opened, and written as a PNG where that is needed."""
        try:
            self.path(relative)
        except ImageProblem:
            return False
        return True

    def path(self, relative: str) -> str:
        """The portable path. Raises ImageProblem if the file cannot be opened."""
        return self._path(relative) if relative else ""

    def _candidate(self, candidate: Candidate) -> Candidate:
        named = self.path(candidate.img_path or "")
        return candidate if named == (candidate.img_path or "") else candidate.model_copy(update={"img_path": named})

    def _named(self, relative: str) -> str:
        if self._images.is_portable(relative):
            return relative
        file = self._images.portable(relative)
        same = self._images.read_bytes(relative) == file.content
        name = f"{FOLDER}/{relative}" if same else f"{FOLDER}/{relative}.png"
        place = self._written / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():  # written before, and dropped from the cache since
            place.write_bytes(file.content)
            self.count += 1
        return f"{self._way}/{name}"
