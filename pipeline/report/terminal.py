"""A dataset's counts, an annotation and a trial request for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from pipeline.annotate.annotation import Annotation, Attempt
from pipeline.annotate.screens import screen_results
from pipeline.report.dataset_report import TASK_COLUMNS, in_words, task_cells
from pipeline.serving.preflight import Example
from pipeline.traces.judgements import ASSESS, VERIFY
from prompts import Prompt
from schemas.config import BuildConfig
from schemas.judgement import Judgement
from schemas.manifest import Manifest
from schemas.mbeir import Candidate
from schemas.trace import Trace


def render_manifest(manifest: Manifest) -> RenderableType:
    """Counts by dataset-task, route and the most frequent reason for a rejection."""
    left = ["left"] if manifest.left else []
    table = Table("dataset-task", *TASK_COLUMNS, *left, "first reason")
    for column in table.columns[1:-1]:
        column.justify = "right"
    for task in manifest.tasks:
        first = max(task.rejected.items(), key=lambda item: item[1], default=None)
        reason = f"{escape(first[0])} ({first[1]:,})" if first else ""
        table.add_row(
            escape(f"{task.dataset}_task{task.task_id}"), *task_cells(task), *([f"{task.left:,}"] if left else []), reason
        )
    if not manifest.synthetic:
        return table
    return Group("[bold]SYNTHETIC[/] (pocket world: invented queries and images)", table)


def render_annotation(annotation: Annotation, settings: BuildConfig) -> RenderableType:
    """Every step of an annotation: prompts, answers, the result of each screen."""
    return Group(Rule(f"[bold]{escape(annotation.id)}[/]", align="left"), *_annotation_lines(annotation, settings))


def render_example(example: Example, prompt: Prompt, settings: BuildConfig) -> RenderableType:
    """A query of `teacher check` with its answers. prompt: the one that asked to reason."""
    query = example.sample.query
    title = f"[bold]{escape(example.sample.family.name)}[/]  {escape(f'{query.dataset_task.name}  {query.qid}')}"
    return Group(Rule(title, align="left"), *_example_lines(example, prompt, settings))


def _annotation_lines(annotation: Annotation, settings: BuildConfig) -> Iterator[RenderableType]:
    query = annotation.query
    yield f"[dim]instruction[/] {escape(annotation.instruction)}"
    if query.query_txt:
        yield f"[dim]text       [/] {escape(query.query_txt)}"
    if query.query_img_path:
        yield f"[dim]image      [/] {escape(str(settings.mbeir / query.query_img_path))}"
    if annotation.target is not None:
        yield f"[dim]target     [/] {escape(_candidate(annotation.target, settings.mbeir))}"
    if annotation.assessment is not None and annotation.assess_prompt is not None:
        yield from _prompt("assess", annotation.assess_prompt)
        yield f"  P(complex) = {annotation.assessment:.3f}"
    if annotation.route is not None:
        yield f"[bold]route: {escape(annotation.route)}[/]"
    for number, attempt in enumerate(annotation.attempts, 1):
        yield from _attempt_lines(number, attempt, settings)
    if annotation.rejection is not None:
        cause = annotation.rejection
        yield f"[red]rejected at {escape(cause.stage)}: {escape(cause.reason)}[/] ({escape(cause.detail)})"
    else:
        yield "[green]a record[/]"


def _attempt_lines(number: int, attempt: Attempt, settings: BuildConfig) -> Iterator[RenderableType]:
    yield from _prompt(f"reason, attempt {number}", attempt.prompt)
    yield f"[dim]  raw answer ({attempt.answer.completion_tokens:,} tokens)[/]"
    yield Text(_indented(attempt.answer.text or attempt.answer.detail))
    if attempt.trace is not None:
        yield from _trace_lines(attempt.trace)
    if attempt.screened is not None:
        for name, failure in screen_results(attempt.screened, settings.screen).items():
            result = "[green]pass[/]" if failure is None else f"[red]{escape(failure.reason)}[/]: {escape(failure.detail)}"
            yield f"  [dim]{escape(name):<26}[/] {result}"
    if attempt.verify_prompt is not None:
        yield from _prompt("verify", attempt.verify_prompt)
        confidence = f"{attempt.confidence:.3f}" if attempt.confidence is not None else "none"
        yield f"  confidence = {confidence} (must be above {settings.verify.threshold:g})"
    for question in attempt.facet_questions:
        yield from _prompt(f"verify {question.name}", question.prompt)
        confidence = f"{question.confidence:.3f}" if question.confidence is not None else "none"
        yield f"  confidence = {confidence} (must be above {settings.verify.facet_threshold:g})"


def _example_lines(example: Example, prompt: Prompt, settings: BuildConfig) -> Iterator[RenderableType]:
    query = example.sample.query
    if query.query_img_path:
        yield f"[dim]image [/] {escape(str(settings.mbeir / query.query_img_path))}"
    yield f"[dim]prompt[/] {escape(in_words(prompt).strip())}"
    for name, judged, labels in (("P(complex)", example.assessed, ASSESS), ("P(yes)", example.verified, VERIFY)):
        if judged is None:
            continue
        judgement = judged.judgement
        if isinstance(judgement, Judgement):
            value = f"{judgement.probability:.3f} ({judgement.source}; {labels.positive} or {labels.negative})"
        else:
            value = f"none: {judgement.detail if judgement else judged.answer.detail}"
        yield f"[dim]{escape(name)}[/] {escape(value)}"
    if example.reasoned is None:
        return
    answer, trace = example.reasoned.answer, example.reasoned.trace
    if isinstance(trace, Trace):
        yield from _trace_lines(trace)
    else:
        reason, detail = (trace.reason, trace.detail) if trace else (answer.outcome, answer.detail)
        yield f"  [red]{escape(reason)}[/]: {escape(detail)}"
        yield f"  raw: {escape(answer.text)}"
    yield f"[dim]target[/] {escape(_candidate(example.sample.target, settings.mbeir))}"
    yield f"[dim]cost  [/] {answer.prompt_tokens:,} + {answer.completion_tokens:,} tokens, {answer.latency_s:.2f} s"


def _trace_lines(trace: Trace) -> Iterator[RenderableType]:
    for facet in trace.facets:
        yield f"  [cyan]{escape(facet.label)}[/]: {escape(facet.text)}"
    yield f"  [bold cyan]Answer[/]: {escape(trace.answer)}"


def _candidate(candidate: Candidate, mbeir: Path) -> str:
    image = str(mbeir / candidate.img_path) if candidate.img_path else ""
    return f"{candidate.txt or ''} {image}".strip()


def _prompt(title: str, prompt: Prompt) -> Iterator[RenderableType]:
    yield f"[dim]  {escape(title)} prompt[/]"
    yield Text(_indented(in_words(prompt).strip()), style="dim")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
