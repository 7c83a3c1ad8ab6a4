"""What a zero-shot task is: queries with any number of images, candidates, and how they are scored.

Queries and candidates are streamed from the files again and again, never kept. Ids are texts. Those of queries are unique
within a task; those of candidates are too, but for MT-FIQ, whose published list names 17 images twice (each place counts).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Picture:
    """An image below the suite's root.

    Args:
        path: relative to the root.
        others: further names that the file may have (VIST's suffixes); the first that is there is opened.
        box: (left, top, width, height) in pixels: only this part is shown, as GeneCIS cuts it (`pictures.cut`).
    """

    path: str
    others: tuple[str, ...] = ()
    box: tuple[float, float, float, float] | None = None


Part = str | Picture


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked.

    Args:
        id: unique within the task.
        parts: texts and pictures in the order in which they are read.
        instruction: stands before a query of text alone and before a query of several pictures, else after its picture.
        positives: ids of the candidates that are right; none where the labels are not published. CIRCO's target is the first.
        gallery: ids of the candidates among which to choose, the target first; none: among all.
        excluded: ids of candidates that cannot be found (the story's own first images in VIST).
    """

    id: str
    parts: tuple[Part, ...]
    positives: tuple[str, ...]
    instruction: str = ""
    gallery: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(part for part in self.parts if isinstance(part, Picture))


@dataclass(frozen=True, slots=True)
class Candidate:
    """What may be found. Candidates never get an instruction."""

    id: str
    parts: tuple[Part, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(part for part in self.parts if isinstance(part, Picture))


class Measure(StrEnum):
    """How a task is scored; the definitions are in `scorers`."""

    HITS = "hits"
    AVERAGE_PRECISION = "average precision"
    GALLERY_HITS = "hits in the gallery"
    PAIRWISE = "pairwise accuracy"


@dataclass(frozen=True, slots=True)
class Task:
    """One part of a column, e.g. SugarCrepe's `add_att`.

    Args:
        name: `dataset/part`, unique in the suite.
        column: the column of the paper's table that it belongs to.
        ks: ranks that are scored; the first is the paper's.
        labelled: False where right answers are not published, so that only a server can score it.
    """

    name: str
    column: str
    measure: Measure
    ks: tuple[int, ...]
    queries: Callable[[], Iterator[Query]]
    candidates: Callable[[], Iterator[Candidate]]
    labelled: bool = True


@dataclass(frozen=True, slots=True)
class Counts:
    """How many a task has as published; None where nobody counted."""

    queries: int
    candidates: int | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """One data set of the suite.

    Args:
        name: as the commands know it.
        columns: of the paper's table, with the metric: `SugarCrepe` -> `accuracy`.
        about: what is asked, in one line.
        files: annotation files below the root, as patterns (Urban1K's folder is spelt in two ways).
        source: where the files are published.
        licence: of the annotations; images have licences of their own.
        published: counts by task.
        open: the tasks whose files are there, from the root.
    """

    name: str
    columns: Mapping[str, str]
    about: str
    files: tuple[str, ...]
    source: str
    licence: str
    open: Callable[[Path], tuple[Task, ...]]
    published: Mapping[str, Counts] = field(default_factory=dict)

    def found(self, root: Path) -> tuple[str, ...]:
        """Those of its files that are there."""
        return tuple(name for name in self.files if any(path.is_file() for path in root.glob(name)))
