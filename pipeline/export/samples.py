"""Records joined with M-BEIR's candidates: the input of every export.

Texts go through `defused`, so that a query never contains the marks by which a project places pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa

from pipeline.dataset.built_dataset import BuiltDataset
from pipeline.mbeir.candidates import CandidateLookup
from pipeline.mbeir.instructions import candidate_text
from pipeline.mbeir.layout import Layout
from prompts import defused
from schemas.errors import InputError
from schemas.mbeir import Candidate, DatasetTask, Modality
from schemas.record import EMB_TOKEN

_ROWS: Final = 1000
_SLOTS: Final = ("image", "video", "audio")
"""LLaMA-Factory replaces its <image> by ``{{image}}`` and then takes every ``{{image}}`` for a picture."""


class Side(NamedTuple):
    """A query or a candidate as a model reads it. image: path below the M-BEIR root; empty for none.

    modality: as declared, even if the text is missing.
    """

    text: str
    image: str
    modality: Modality

    @property
    def says_nothing(self) -> bool:
        return not self.text.strip() and not self.image


class Sample(NamedTuple):
    """row: the record. query: instruction and text. negatives: the listed ones that have a text or an image."""

    row: dict[str, Any]
    task: DatasetTask
    query: Side
    positives: tuple[Candidate, ...]
    """All positives that a pool contains, at least one."""
    negatives: tuple[Candidate, ...]

    @property
    def positive(self) -> Side:
        """The first positive with a text or an image."""
        return next(side for candidate in self.positives if not (side := side_of(candidate)).says_nothing)

    @property
    def target(self) -> str:
        """What the student learns to write. Its only special token is the last."""
        return plain(self.row["target"].removesuffix(EMB_TOKEN)) + EMB_TOKEN


class SkipReason(StrEnum):
    """Why a record is left out, as messages say it."""

    NOWHERE = "no candidate pool holds their positives"
    EMPTY = "their positives have neither text nor image"
    UNREADABLE = "their image, or that of every positive, cannot be opened"


class Skipped(NamedTuple):
    """A record without a usable positive."""

    id: str
    reason: SkipReason


def samples(dataset: BuiltDataset, mbeir: Path, cache: Path | None, *, negatives: int = 1) -> Iterator[Sample | Skipped]:
    """All records in order. Raises InputError if M-BEIR's pools are missing."""
    layout = Layout.open(mbeir)
    rows = _rows(dataset.table("data"))
    with CandidateLookup(layout, cache) as lookup:
        for (name, task_id, split), part in groupby(rows, key=lambda row: (row["dataset"], row["task_id"], row["split"])):
            task = DatasetTask(name, task_id)
            if not lookup.pools(task, split):
                raise InputError(
                    f"{mbeir} has no candidate pool for {task.name}, {split}",
                    f"{layout.fetch_remedy(task.dataset, split)}, or name another --mbeir",
                )
            for row in part:
                positives = tuple(lookup.held(task, split, row["positives"]))
                if not positives:
                    yield Skipped(row["id"], SkipReason.NOWHERE)
                    continue
                if all(side_of(positive).says_nothing for positive in positives):
                    yield Skipped(row["id"], SkipReason.EMPTY)
                    continue
                query = Side(plain(_query_text(row)), row["query_image"] or "", Modality(row["query_modality"]))
                listed = lookup.held(task, split, row["hard_negatives"])
                usable = (negative for negative in listed if not side_of(negative).says_nothing)
                yield Sample(row, task, query, positives, tuple(islice(usable, negatives)))


def without_pictures(sample: Sample, opens: Callable[[str], bool]) -> Sample | Skipped:
    """The sample without candidates whose picture does not open. opens: whether that of a path does."""

    def usable(candidate: Candidate) -> bool:
        path = side_of(candidate).image
        return not path or opens(path)

    positives = tuple(filter(usable, sample.positives))
    if (sample.query.image and not opens(sample.query.image)) or all(side_of(one).says_nothing for one in positives):
        return Skipped(sample.row["id"], SkipReason.UNREADABLE)
    return sample._replace(positives=positives, negatives=tuple(filter(usable, sample.negatives)))


def side_of(candidate: Candidate) -> Side:
    modality = candidate.modality
    text = plain(candidate_text(candidate.txt)) if modality.has_text else ""
    return Side(text, (candidate.img_path or "") if modality.has_image else "", modality)


def plain(text: str) -> str:
    """`text` without anything that a model or a training project would interpret as markup."""
    text = defused(text)
    for slot in _SLOTS:
        text = text.replace(f"{{{{{slot}}}}}", f"‹{slot}›")
    return text


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The records as dicts, few of them in memory at once."""
    for batch in table.to_batches(max_chunksize=_ROWS):
        yield from batch.to_pylist()


def _query_text(row: dict[str, Any]) -> str:
    return " ".join(part for part in (row["instruction"], row["query_text"] or "") if part)
