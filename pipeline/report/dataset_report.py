"""The report of a build: the dataset's content, rejections with their reasons, and examples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline.annotate.annotation import Annotation
from pipeline.annotate.replay import replay
from pipeline.dataset.built_dataset import BuiltDataset
from pipeline.mbeir.candidates import Row, first_positives
from pipeline.mbeir.stores import build_store
from pipeline.mbeir.thumbnails import Thumbnails
from pipeline.report.dataset_charts import build_charts
from pipeline.report.page import Example, Exchange, Fact, Grid, Page
from pipeline.traces.families import family_of
from prompts import ImageSlot, Prompt
from schemas.manifest import Manifest, TaskCounts
from schemas.mbeir import Candidate

RECORDS: Final = 300
REJECTIONS: Final = 100
TASK_COLUMNS: Final = ("queries", "reasoning", "bypass", "rejected", "think rate", "kept")
_LABELS: Final = {facet.name: facet.label for i in range(9) for facet in family_of(i).facets}


def build_page(
    dataset: BuiltDataset,
    *,
    records: int = RECORDS,
    rejections: int = REJECTIONS,
    prices: tuple[float, float] | None = None,
    image_roots: Sequence[Path] = (),
) -> Page:
    """prices: per million prompt and completion tokens, to show the cost. image_roots: added to the build's."""
    manifest = dataset.manifest
    settings = dataset.settings(image_roots)
    numbers = dataset.table(
        "data", ["id", "dataset", "task_id", "route", "assessment", "verdict", "reasoning", "answer", "provenance"]
    )
    rows = _sampled(dataset, records, numbers)
    rejected_rows = _sampled_rejections(dataset, rejections)
    annotations: dict[str, Annotation] = {}
    positives: dict[str, Candidate] = {}
    store = None
    if settings is not None and settings.mbeir.is_dir():
        store = build_store(settings)
        annotations = replay(settings, [*rows, *rejected_rows])
        positives = first_positives(settings, [*rows, *rejected_rows])
    pictures = Thumbnails(store)
    examples = [_example(row, "record", annotations, positives, pictures) for row in rows]
    examples += [_example(row, "rejected", annotations, positives, pictures) for row in rejected_rows]
    return Page(
        title=f"{manifest.name}: build report",
        banner="SYNTHETIC: the queries, images and facts of this dataset are invented (pocket world)."
        if manifest.synthetic
        else "",
        lead=_lead(manifest),
        facts=_facts(manifest, prices),
        charts=build_charts(manifest, numbers),
        grids=[_tasks(manifest), *_reasons(manifest)],
        examples=examples,
        examples_note=_note(manifest, len(rows), len(rejected_rows), store is not None),
        pictures=pictures.found,
    )


def _lead(manifest: Manifest) -> str:
    verifier = f", verified by {manifest.verifier.name}" if manifest.verifier else ", without verification"
    return (
        f"{manifest.queries:,} queries of the {manifest.split} split, annotated by {manifest.teacher.name} "
        f"(revision {manifest.teacher.revision}){verifier}, with mbeir-cot {manifest.pipeline_version}."
    )


def _facts(manifest: Manifest, prices: tuple[float, float] | None) -> list[Fact]:
    reasoning = sum(task.reasoning for task in manifest.tasks)
    facts = [
        Fact("queries", f"{manifest.queries:,}"),
        Fact("records", f"{manifest.records:,}", f"{manifest.records / max(1, manifest.queries):.1%} of the queries"),
        Fact("think rate", f"{reasoning / max(1, manifest.records):.1%}", f"{reasoning:,} records reason"),
        Fact("rejections", f"{manifest.rejections:,}", "each with its reason"),
        Fact(
            "tokens read", f"{manifest.prompt_tokens:,}", f"{manifest.prompt_tokens / max(1, manifest.queries):.0f} per query"
        ),
        Fact(
            "tokens written",
            f"{manifest.completion_tokens:,}",
            f"{manifest.completion_tokens / max(1, manifest.queries):.1f} per query",
        ),
    ]
    if prices is not None:
        cost = (manifest.prompt_tokens * prices[0] + manifest.completion_tokens * prices[1]) / 1e6
        facts.append(Fact("cost", f"{cost:,.2f}", f"at {prices[0]:g} and {prices[1]:g} per million tokens"))
    return facts


def task_cells(task: TaskCounts) -> tuple[str, ...]:
    """A dataset-task's counts, in the order of `TASK_COLUMNS`."""
    return (
        f"{task.queries:,}",
        f"{task.reasoning:,}",
        f"{task.bypass:,}",
        f"{task.rejections:,}",
        f"{task.think_rate:.0%}" if task.think_rate is not None else "-",
        f"{task.kept:.1%}" if task.kept is not None else "-",
    )


def _tasks(manifest: Manifest) -> Grid:
    rows = [(f"{task.dataset} task {task.task_id}", *task_cells(task)) for task in manifest.tasks]
    return Grid("By dataset-task", ("dataset-task", *TASK_COLUMNS), rows)


def _reasons(manifest: Manifest) -> list[Grid]:
    counts: dict[str, int] = defaultdict(int)
    for task in manifest.tasks:
        for reason, count in task.rejected.items():
            counts[reason] += count
    if not counts:
        return []
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [
        Grid("Why queries were rejected", ("stage: reason", "queries"), [(reason, f"{count:,}") for reason, count in ordered])
    ]


def _sampled(dataset: BuiltDataset, count: int, rows: pa.Table) -> list[dict[str, Any]]:
    """Sampled evenly from each dataset-task and route; the same for the same dataset."""
    groups = [
        f"{d}/{t}/{r}"
        for d, t, r in zip(rows["dataset"].to_pylist(), rows["task_id"].to_pylist(), rows["route"].to_pylist(), strict=True)
    ]
    return _fetched(dataset.table("data"), groups, count)


def _sampled_rejections(dataset: BuiltDataset, count: int) -> list[dict[str, Any]]:
    if "rejected" not in dataset.parts():
        return []
    rows = dataset.table("rejected")
    groups = [f"{s}/{r}" for s, r in zip(rows["stage"].to_pylist(), rows["reason"].to_pylist(), strict=True)]
    return _fetched(rows, groups, count)


def _fetched(table: pa.Table, groups: Sequence[str], count: int) -> list[dict[str, Any]]:
    """`count` rows, taken from all groups in turn, so that the first rows show every group."""
    members: dict[str, list[int]] = defaultdict(list)
    for index in np.random.default_rng(0).permutation(len(groups)).tolist():
        members[groups[index]].append(index)
    waiting = [members[name] for name in sorted(members)]
    chosen: list[int] = []
    while waiting and len(chosen) < count:
        chosen += [part.pop() for part in waiting][: count - len(chosen)]
        waiting = [part for part in waiting if part]
    rows: list[dict[str, Any]] = table.take(pa.array(chosen, pa.int64())).to_pylist()
    return rows


def _note(manifest: Manifest, records: int, rejections: int, pictured: bool) -> str:
    sampled = records < manifest.records or rejections < manifest.rejections
    note = f"{records:,} of {manifest.records:,} records and {rejections:,} of {manifest.rejections:,} rejections"
    if sampled:
        note = f"A sample: {note}, drawn evenly from dataset-tasks, routes and reasons"
    if not pictured:
        note += ". Images, positives and prompts are not shown: the M-BEIR directory or the ledger of this build is not here"
    return note + "."


def _example(
    row: Row, kind: str, annotations: Mapping[str, Annotation], positives: Mapping[str, Candidate], pictures: Thumbnails
) -> Example:
    annotation, positive = annotations.get(row["id"]), positives.get(row["id"])
    rejected = kind == "rejected"
    badges = []
    if row["assessment"] is not None:
        badges.append(f"P(complex) {row['assessment']:.3f}")
    if row.get("verdict"):
        badges.append(f"verifier {row['verdict']['confidence']:.3f}")
    badges += [f"{one['name']} {one['confidence']:.3f}" for one in row.get("facet_confidences") or ()]
    if row["multiplicity"] > 1:
        badges.append(f"{row['multiplicity']} times in the input")
    lines = [(_LABELS.get(facet["name"], facet["name"]), facet["text"]) for facet in row.get("facets") or ()]
    if rejected:
        lines = [("detail", row["detail"]), *([("last answer", row["raw_answer"])] if row["raw_answer"] else [])]
    return Example(
        id=row["id"],
        tags={
            "dataset": f"{row['dataset']} task {row['task_id']}",
            "route": "rejected" if rejected else row["route"],
            "reason": f"{row['stage']}: {row['reason']}" if rejected else "",
        },
        instruction=row["instruction"],
        text=row["query_text"] or "",
        picture=pictures.add(row["query_image"]),
        lines=lines or [("bypass", "the query is embedded as it is")],
        strong=row.get("answer") or "",
        badges=badges,
        positive_text=(positive.txt or "") if positive is not None else "",
        positive_picture=pictures.add(positive.img_path) if positive is not None else "",
        positive_name=f"positive (1 of {len(row['positives'])})" if len(row["positives"]) > 1 else "positive",
        small="" if rejected else _provenance(row["provenance"]),
        exchanges=exchanges(annotation) if annotation is not None else (),
    )


def _provenance(provenance: Mapping[str, Any]) -> str:
    attempts = f"{provenance['attempts']} attempt{'s' if provenance['attempts'] != 1 else ''}"
    target = ", saw the target" if provenance["reveal_target"] else ""
    tokens = f"{provenance['prompt_tokens']:,} + {provenance['completion_tokens']:,} tokens"
    temperature = "the server's own" if provenance["temperature"] is None else f"{provenance['temperature']:g}"
    return (
        f"{provenance['teacher']} {provenance['revision']}, {attempts}, {tokens}, "
        f"temperature {temperature}, seed {provenance['seed']}, prompts {provenance['prompt_sha256']}{target}"
    )


def exchanges(annotation: Annotation) -> list[Exchange]:
    """The prompts of an annotation with their raw answers, in order."""
    found = []
    if annotation.assess_prompt is not None and annotation.assess_answer is not None:
        found.append(
            Exchange(
                "assess", in_words(annotation.assess_prompt), annotation.assess_answer.text or annotation.assess_answer.detail
            )
        )
    for number, attempt in enumerate(annotation.attempts, 1):
        found.append(
            Exchange(f"reason, attempt {number}", in_words(attempt.prompt), attempt.answer.text or attempt.answer.detail)
        )
        if attempt.verify_prompt is not None and attempt.verify_answer is not None:
            answer = attempt.verify_answer.text or attempt.verify_answer.detail
            found.append(Exchange(f"verify, attempt {number}", in_words(attempt.verify_prompt), answer))
        for question in attempt.facet_questions:
            answer = question.answer.text or question.answer.detail
            found.append(Exchange(f"verify {question.name}, attempt {number}", in_words(question.prompt), answer))
    return found


def in_words(prompt: Prompt) -> str:
    """A prompt as text, with a placeholder for each picture."""
    return "".join(f"[{part.role} image]" if isinstance(part, ImageSlot) else part for part in prompt)
