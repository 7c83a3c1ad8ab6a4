"""Verification by one question, and by one for each facet: confidences, rejections that name the facet, and its repair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from bench.oracle import Oracle
from pipeline.annotate.annotation import Annotation
from pipeline.annotate.preview import annotate_queries, annotations_of
from pipeline.annotate.record_builder import RecordBuilder
from pipeline.annotate.steps import Annotator
from pipeline.annotate.worker import AnnotationWorker
from pipeline.config import load_config
from pipeline.dataset.arrow_schema import records_table, rejections_table
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.work_list import collect
from pipeline.serving.hosted import hosted_pair
from pipeline.traces.families import family_of
from prompts import ImageSlot, Prompt, PromptSet
from schemas.config import BuildConfig
from schemas.record import Stage, VerifyReason


def annotated(oracle: Oracle, directory: Path, world: Path, **changes: Any) -> list[Annotation]:
    settings = {"route__policy": "by-dataset", "input__limit": 60, "verify__form": "facets"} | changes
    return annotate_queries(load_config(oracle.config(directory, world, **settings), BuildConfig), limit=60)


def said(prompt: Prompt) -> str:
    return "".join(f"[{part.role}]" if isinstance(part, ImageSlot) else part for part in prompt)


def test_each_facet_and_the_answer_are_asked_about_and_keep_their_confidences(
    oracle: Oracle, tmp_path: Path, small_world: Path
) -> None:
    found = annotated(oracle, tmp_path, small_world, teacher__prompts="full", verify__facet_threshold=0.0)
    verified = [(one, attempt) for one in found for attempt in one.attempts if attempt.verify_answer is not None]
    assert len(verified) > 5
    for one, attempt in verified:
        facets = family_of(one.query.task_id).facets
        assert [question.name for question in attempt.facet_questions] == [facet.name for facet in facets]
        assert all(question.confidence is not None for question in attempt.facet_questions)
        assert attempt.trace is not None
        assert attempt.verify_prompt is not None
        answer = said(attempt.verify_prompt)
        texts = [said(question.prompt) for question in attempt.facet_questions]
        for facet, text, trace in zip(facets, texts, attempt.trace.facets, strict=True):
            assert f"Statement to check ({facet.label}): {trace.text}\n{facet.question}" in text
            shared = answer.index("Statement to check")
            assert text[:shared] == answer[:shared]
            assert shared > 0.7 * len(text)
        assert f"Statement to check (Answer): {attempt.trace.answer}" in answer
    asked = sum(len(attempt.answers) for one in found for attempt in one.attempts)
    assert asked == sum(one.asked for one in found) == sum(oracle.answered().values())


def test_a_rejection_names_the_facets_and_the_repair_shows_them(oracle: Oracle, tmp_path: Path, small_world: Path) -> None:
    settings = {"verify__facet_threshold": 0.9, "repair__after": ["verify"], "repair__attempts": 2}
    found = annotated(oracle, tmp_path, small_world, teacher__prompts="full", **settings)
    causes = [(one, attempt) for one in found for attempt in one.attempts[:-1] if attempt.rejection is not None]
    by_facet = [pair for pair in causes if pair[1].rejection.reason == VerifyReason.FACET_NOT_SUPPORTED]  # type: ignore[union-attr]
    assert by_facet
    for one, attempt in by_facet:
        low = [question for question in attempt.facet_questions if question.confidence <= 0.9]  # type: ignore[operator]
        labels = {facet.name: facet.label for facet in family_of(one.query.task_id).facets}
        cause = attempt.rejection
        assert cause is not None
        assert cause.stage is Stage.VERIFY
        assert cause.facets == tuple(labels[question.name] for question in low) != ()
        assert all(f"{labels[q.name]}: confidence {q.confidence:.3f}" in cause.detail for q in low)
        repaired = said(one.attempts[1].prompt)
        assert f"was rejected: {', '.join(cause.facets)} not supported: {cause.detail}" in repaired


def test_the_answer_decides_before_the_facets(oracle: Oracle, tmp_path: Path, small_world: Path) -> None:
    found = annotated(oracle, tmp_path, small_world, verify__threshold=0.95, verify__facet_threshold=0.0)
    for one in found:
        for attempt in one.attempts:
            if attempt.confidence is not None:
                refused = attempt.rejection is not None and attempt.rejection.reason == VerifyReason.NOT_SUPPORTED
                assert refused == (attempt.confidence <= 0.95)
    assert any(one.rejection is not None and one.rejection.facets == ("Answer",) for one in found)


def test_rows_keep_the_confidences(oracle: Oracle, tmp_path: Path, small_world: Path) -> None:
    config = load_config(
        oracle.config(
            tmp_path,
            small_world,
            route__policy="by-dataset",
            input__limit=60,
            verify={"form": "facets", "facet_threshold": 0.85},
        ),
        BuildConfig,
    )
    rows = RecordBuilder(_annotator(config))
    work = collect(Layout.open(config.mbeir), config.input, rejects=tmp_path / "malformed.jsonl").read(0, 60)
    import asyncio

    with hosted_pair(config) as endpoints:
        found = asyncio.run(annotations_of(config, endpoints, work))
    records = rejections = 0
    for annotation in found:
        record, rejection = rows.rows(annotation)
        last = annotation.attempts[-1] if annotation.attempts else None
        row = record or rejection
        assert row is not None
        expected = [(q.name, round(q.confidence, 6)) for q in last.facet_questions] if last is not None else []  # type: ignore[arg-type]
        assert [(one.name, one.confidence) for one in row.facet_confidences] == expected
        if record is not None and last is not None:
            assert record.verdict is not None
            assert record.verdict.confidence == round(last.confidence, 6)  # type: ignore[arg-type]
            assert min(confidence for _, confidence in expected) > 0.85
            facet_sha = PromptSet.load("pocket").sha256("verify_facet")[:16]
            assert record.provenance.prompt_sha256.endswith(facet_sha)
            records += 1
        if rejection is not None and rejection.stage is Stage.VERIFY:
            assert last is not None
            assert rejection.confidence == round(last.confidence, 6)  # type: ignore[arg-type]
            rejections += 1
    assert records
    assert rejections


def _annotator(config: BuildConfig) -> Annotator:
    return AnnotationWorker(config, None).annotator


def test_a_single_question_leaves_the_columns_empty(oracle: Oracle, tmp_path: Path, small_world: Path) -> None:
    found = annotated(oracle, tmp_path, small_world, verify__form="single")
    verified = [attempt for one in found for attempt in one.attempts if attempt.verify_answer is not None]
    assert verified
    assert not any(attempt.facet_questions for attempt in verified)
    assert all(cause.facets == () for one in found if (cause := one.rejection) is not None)


def test_an_answer_about_a_facet_that_does_not_arrive_is_owed(tmp_path: Path, small_world: Path) -> None:
    """The last step's answers are all looked at, not only the very last."""
    with Oracle(tmp_path / "oracle.log", refuse="Is this the change that the query asks for?") as server:
        found = annotated(server, tmp_path, small_world, teacher__prompts="full", input__datasets=["cirr"])
    refused = [one for one in found if one.attempts and one.attempts[-1].facet_questions]
    assert refused
    for one in refused:
        assert one.rejection is not None
        assert one.rejection.reason == "permanent_http"
        assert len(one.last_answers) == 3
        assert [answer.ok for answer in one.last_answers] == [True, False, True]
        assert json.loads(json.dumps(one.rejection.detail))


def test_rows_and_tables_have_each_facets_confidence(oracle: Oracle, tmp_path: Path, small_world: Path) -> None:
    records, rejections = [], []
    for least in (0.0, 0.9):  # most are kept, most are rejected
        settings = {"route__policy": "by-dataset", "verify__form": "facets", "verify__facet_threshold": least}
        config = load_config(oracle.config(tmp_path, small_world, teacher__prompts="full", **settings), BuildConfig)
        builder = RecordBuilder(AnnotationWorker(config, None).annotator)
        for annotation in annotate_queries(config, limit=60):
            record, rejection = builder.rows(annotation)
            records += [record] if record is not None else []
            rejections += [rejection] if rejection is not None else []
    assert any(record.facet_confidences for record in records)
    assert any(rejection.facet_confidences for rejection in rejections)
    for table, rows in ((records_table(records), records), (rejections_table(rejections), rejections)):
        dumped = [row.model_dump(mode="json", include=set(table.column_names)) for row in rows]  # type: ignore[attr-defined]
        assert table.to_pylist() == pa.Table.from_pylist(dumped, schema=table.schema).to_pylist()
