"""Records joined with M-BEIR's candidates: what every export is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.finished import FinishedDataset
from pipeline.mbeir.instructions import candidate_text
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.pools import CandidatePool
from schemas.errors import InputError
from schemas.mbeir import Candidate, DatasetTask


class Side(NamedTuple):
    """A query or a candidate as a model reads it. image: path below the M-BEIR root; empty for none."""

    text: str
    image: str


class Sample(NamedTuple):
    """row: the record. query: instruction and text. positive: the first that a pool holds; negatives: listed ones."""

    row: dict[str, Any]
    task: DatasetTask
    query: Side
    positives: tuple[Candidate, ...]
    """All that a pool holds, at least one."""
    negatives: tuple[Candidate, ...]

    @property
    def positive(self) -> Candidate:
        return self.positives[0]


class Skipped(NamedTuple):
    """A record whose positives no pool holds."""

    id: str


def samples(dataset: FinishedDataset, mbeir: Path, cache: Path | None, *, negatives: int = 1) -> Iterator[Sample | Skipped]:
    """All records in order. Raises InputError where M-BEIR's pools are missing."""
    layout = Layout.open(mbeir)
    rows = dataset.table("data").to_pylist()
    for (name, task_id, split), part in groupby(rows, key=lambda row: (row["dataset"], row["task_id"], row["split"])):
        task = DatasetTask(name, task_id)
        pools = layout.target_pools(task, split)
        if not pools:
            raise InputError(
                f"{mbeir} has no candidate pool for {task.name}, {split}",
                f"{layout.fetch_remedy(task.dataset, split)}, or name another --mbeir",
            )
        opened = [CandidatePool.open(path, cache) for path in pools]
        try:
            for row in part:
                positives = _fetched(opened, row["positives"], len(row["positives"]))
                if not positives:
                    yield Skipped(row["id"])
                    continue
                query = Side(_query_text(row), row["query_image"] or "")
                negative = _fetched(opened, row["hard_negatives"], negatives)
                yield Sample(row, task, query, tuple(positives), tuple(negative))
        finally:
            for pool in opened:
                pool.close()


def side_of(candidate: Candidate) -> Side:
    modality = candidate.modality
    text = candidate_text(candidate.txt) if modality.has_text else ""
    return Side(text, (candidate.img_path or "") if modality.has_image else "")


def _query_text(row: dict[str, Any]) -> str:
    return " ".join(part for part in (row["instruction"], row["query_text"] or "") if part)


def _fetched(pools: Sequence[CandidatePool], dids: Sequence[str], count: int) -> list[Candidate]:
    found: list[Candidate] = []
    for did in dids:
        if len(found) == count:
            break
        holding = next((pool for pool in pools if did in pool), None)
        if holding is not None:
            found += holding.fetch([did])
    return found
