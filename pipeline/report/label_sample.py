"""What people may judge of a dataset: verdicts on traces, and routes; and a stratified sample of both.

A stratum is the rows of one kind, task family and decision (accepted or not, reasoning or bypass). A sample takes as many from
each stratum as it can, since wrong accepted traces are few; `agreement` weights them by the strata's sizes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pipeline.dataset.built_dataset import BuiltDataset
from pipeline.traces.families import family_of
from pipeline.traces.parser import parse_trace
from schemas.labels import LabelKind
from schemas.record import Route, Stage, VerifyReason
from schemas.trace import Trace

_RECORD: Final = ["id", "task_id", "query_text", "query_image", "instruction", "route", "assessment", "answer", "verdict"]
_REJECTED: Final = [
    "id",
    "task_id",
    "query_text",
    "query_image",
    "instruction",
    "stage",
    "reason",
    "raw_answer",
    "assessment",
    "confidence",
]
_REFUSED: Final = (VerifyReason.NOT_SUPPORTED, VerifyReason.FACET_NOT_SUPPORTED)


@dataclass(frozen=True, slots=True)
class LabelItem:
    """Something to judge. decision: of the pipeline: accepted, or to reason. shown: a digest of what is judged."""

    kind: LabelKind
    id: str
    family: str
    decision: bool
    confidence: float | None
    shown: str

    @property
    def stratum(self) -> tuple[LabelKind, str, bool]:
        return self.kind, self.family, self.decision


def label_items(dataset: BuiltDataset) -> list[LabelItem]:
    """All verdicts and routes of a dataset."""
    found: dict[tuple[LabelKind, str], LabelItem] = {}
    if "rejected" in dataset.parts():
        for row in dataset.rows("rejected", _REJECTED):
            for item in _of_rejection(row):
                found[item.kind, item.id] = item
    for row in dataset.rows("data", _RECORD):
        for item in _of_record(row):
            found.setdefault((item.kind, item.id), item)  # of a rejected query that bypasses, its rejection tells the route
    return list(found.values())


def draw_items(items: Sequence[LabelItem], count: int, *, seed: int = 0) -> list[LabelItem]:
    """`count` items, half of them verdicts where there are as many; evenly from the strata, verdicts first."""
    shares = {LabelKind.VERDICT: count - count // 2, LabelKind.ROUTE: count // 2}
    of_kind = {kind: [item for item in items if item.kind is kind] for kind in LabelKind}
    for kind, other in ((LabelKind.VERDICT, LabelKind.ROUTE), (LabelKind.ROUTE, LabelKind.VERDICT)):
        if (spare := shares[kind] - len(of_kind[kind])) > 0:
            shares[kind], shares[other] = len(of_kind[kind]), shares[other] + spare
    generator = np.random.default_rng(seed)
    chosen: list[LabelItem] = []
    for kind in LabelKind:
        drawn = _even(of_kind[kind], shares[kind], generator)
        chosen += [drawn[i] for i in generator.permutation(len(drawn)).tolist()]  # the order must not tell the decision
    return chosen


def _even(items: Sequence[LabelItem], count: int, generator: np.random.Generator) -> list[LabelItem]:
    strata: dict[tuple[LabelKind, str, bool], list[LabelItem]] = defaultdict(list)
    for index in generator.permutation(len(items)).tolist():
        strata[items[index].stratum].append(items[index])
    waiting = [strata[name] for name in sorted(strata)]
    chosen: list[LabelItem] = []
    while waiting and len(chosen) < count:
        chosen += [part.pop() for part in waiting][: count - len(chosen)]
        waiting = [part for part in waiting if part]
    return chosen


def _of_record(row: dict[str, Any]) -> Iterator[LabelItem]:
    family = family_of(row["task_id"]).name
    if row["verdict"] is not None:
        shown = digest_of(row, row["answer"])
        yield LabelItem(LabelKind.VERDICT, row["id"], family, True, row["verdict"]["confidence"], shown)
    yield LabelItem(LabelKind.ROUTE, row["id"], family, row["route"] == Route.REASONING, row["assessment"], digest_of(row))


def _of_rejection(row: dict[str, Any]) -> Iterator[LabelItem]:
    family = family_of(row["task_id"])
    if row["stage"] == Stage.VERIFY and row["reason"] in _REFUSED:
        trace = parse_trace(row["raw_answer"], family)
        if isinstance(trace, Trace):
            shown = digest_of(row, trace.answer)
            yield LabelItem(LabelKind.VERDICT, row["id"], family.name, False, row["confidence"], shown)
    if row["stage"] in (Stage.REASON, Stage.SCREEN, Stage.VERIFY):
        yield LabelItem(LabelKind.ROUTE, row["id"], family.name, True, row["assessment"], digest_of(row))


def digest_of(row: dict[str, Any], answer: str = "") -> str:
    """Of what a person judges: the query, and for a verdict the answer."""
    told = (row["instruction"], row["query_text"] or "", row["query_image"] or "", answer)
    return hashlib.blake2b("\0".join(told).encode(), digest_size=8).hexdigest()
