"""Quality of a build of the pocket world, measured against the world's truth (which no part of the pipeline may read).

A trace is right if its answer says nothing that the target does not show, and names what the query is about:

* pictures and captions: every comma-separated part of the answer fits a part of the target's canonical description (all its
  words, no two to the same thing), and if the answer describes a whole picture, no part of the description is missing;
* knowledge: the answer contains the fact and the page's subject.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from pipeline.annotate.routing import REASONING_DATASETS
from pipeline.traces.families import FAMILIES, family_of
from pipeline.traces.parser import parse_trace
from pocket.evaluation.skills import auc
from pocket.world.ground_truth import QueryTruth, load_truth
from schemas.mbeir import DatasetTask
from schemas.trace import Trace

_RELATIONS: Final = re.compile(r"\b(?:left of|right of|above|below|beside|next to|under|over)\b")
_WHOLE: Final = frozenset({3, 4, 7})
"""Tasks whose answer describes a whole picture: the one shown, or the changed one."""


def is_right(answer: str | None, truth: QueryTruth) -> bool:
    """Whether a trace's answer is right; None (no trace) is not."""
    if not answer:
        return False
    task = DatasetTask.parse(truth.dataset_task).task_id
    if family_of(task).name in ("knowledge", "text") and not truth.dataset_task.startswith("edis"):
        subject = truth.target.split(",")[0]
        words = set(re.findall(r"[\w'-]+", answer))
        return set(truth.answer.split()) <= words and set(subject.split()) <= words
    said, shown = _parts(answer), _parts(truth.answer)
    if task in _WHOLE:
        return said == shown
    things = [set(part.split()) for part in shown]
    for part in said:
        if _RELATIONS.search(part):
            continue
        fitting = next((i for i, thing in enumerate(things) if set(part.split()) <= thing), None)
        if fitting is None:
            return False
        del things[fitting]
    return bool(said)


def _parts(text: str) -> list[str]:
    """Splits an answer into parts; also EDIS's: a teacher writes `storm in Corwick: …`, the truth `storm, Corwick: …`."""
    return [part.strip() for part in re.split(r"[,:]| in ", text) if part.strip()]


def quality(build: Path, truth_directory: Path, split: str = "train") -> dict[str, Any]:
    """Computes the figures of a build's dataset; `bench/quality.py` explains them."""
    truths = {
        f"{truth.dataset_task}/{truth.qid}": truth for truth in load_truth(truth_directory).queries if truth.split == split
    }
    records, rejections = dataset_rows(build, "data"), dataset_rows(build, "rejected")
    annotations = [
        (truth_of(row, truths), row, row.get("answer") or answer_of(row), row.get("stage") or "kept")
        for row in (*records, *rejections)
        if row.get("route") == "reasoning" or (row.get("stage") in ("reason", "screen", "verify"))
    ]
    assessed = [
        (row["assessment"], truth_of(row, truths).needs_reasoning)
        for row in (*records, *rejections)
        if row["assessment"] is not None
    ]
    figures: dict[str, Any] = {"families": {}, "tasks": _tasks(annotations)}
    for name in ("all", *FAMILIES):
        chosen = [j for j in annotations if name in ("all", family_of(j[1]["task_id"]).name)]
        if chosen:
            figures["families"][name] = _filters(chosen)
    if assessed:
        figures["assessment_auc"] = round(auc([p for p, _ in assessed], [t for _, t in assessed]), 4)
    figures["policies"] = _policies([*records, *rejections], truths)
    return figures


def _filters(annotations: list[tuple[QueryTruth, dict[str, Any], str | None, str]]) -> dict[str, Any]:
    right = [is_right(answer, truth) for truth, _, answer, _ in annotations]
    screened = [r for r, j in zip(right, annotations, strict=True) if j[3] in ("kept", "verify")]
    kept = [r for r, j in zip(right, annotations, strict=True) if j[3] == "kept"]
    wrong = len(right) - sum(right)
    refused = len(right) - len(kept)
    wrong_refused = refused - (sum(right) - sum(kept))
    return {
        "traces": len(right),
        "right_before": _share(sum(right), len(right)),
        "right_after_screens": _share(sum(screened), len(screened)),
        "right_after_verify": _share(sum(kept), len(kept)),
        "yield": _share(len(kept), len(right)),
        "precision": _share(wrong_refused, refused),
        "recall": _share(wrong_refused, wrong),
    }


def _tasks(annotations: list[tuple[QueryTruth, dict[str, Any], str | None, str]]) -> dict[str, dict[str, Any]]:
    grouped: dict[str, list[tuple[QueryTruth, dict[str, Any], str | None, str]]] = defaultdict(list)
    for annotation in annotations:
        grouped[annotation[0].dataset_task].append(annotation)
    return {name: _filters(found) for name, found in sorted(grouped.items())}


def _policies(rows: list[dict[str, Any]], truths: Mapping[str, QueryTruth]) -> dict[str, dict[str, float | None]]:
    """Computes how often each policy reasons, and how often that is what the query needs."""
    unique = {row["id"]: row for row in rows if row["assessment"] is not None}.values()
    needs = [truth_of(row, truths).needs_reasoning for row in unique]
    choices = {
        "assessor": [row["assessment"] >= 0.5 for row in unique],
        "by-dataset": [row["dataset"] in REASONING_DATASETS for row in unique],
        "by-modality": [row["query_modality"] == "image,text" for row in unique],
        "truth": needs,
    }
    return {
        name: {
            "think_rate": _share(sum(chosen), len(chosen)),
            "right": _share(sum(a == b for a, b in zip(chosen, needs, strict=True)), len(chosen)),
        }
        for name, chosen in choices.items()
    }


def dataset_rows(build: Path, folder: str) -> list[dict[str, Any]]:
    return [row for path in sorted((build / "dataset" / folder).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def truth_of(row: dict[str, Any], truths: Mapping[str, QueryTruth]) -> QueryTruth:
    return truths[f"{row['dataset']}_task{row['task_id']}/{row['qid']}"]


def answer_of(row: dict[str, Any]) -> str | None:
    trace = parse_trace(row.get("raw_answer") or "", family_of(row["task_id"]))
    return trace.answer if isinstance(trace, Trace) else None


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None
