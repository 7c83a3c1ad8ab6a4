"""Terminal output of builds: what it shows, and that foreign texts are not taken for markup."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console, RenderableType

from pipeline.annotate.annotation import Annotation, Attempt, RejectionCause
from pipeline.report.dataset_report import task_cells
from pipeline.report.terminal import render_annotation, render_manifest
from schemas.config import BuildConfig
from schemas.hosting import ServerConfig
from schemas.manifest import Manifest
from schemas.mbeir import Modality, Query
from schemas.record import Route, Stage
from schemas.teacher import Outcome, TeacherAnswer
from schemas.teacher_config import TeacherConfig

EARLIER = Path(__file__).parents[1] / "dataset" / "earlier" / "dataset" / "manifest.json"
MARKUP = "[/red] a [bold]text[/]"


def shown(renderable: RenderableType) -> str:
    console = Console(width=160, highlight=False, soft_wrap=True, emoji=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_a_manifest_is_shown_task_by_task() -> None:
    manifest = Manifest.model_validate_json(EARLIER.read_bytes())
    text = shown(render_manifest(manifest))
    assert text.startswith("SYNTHETIC")
    for task in manifest.tasks:
        (line,) = [line for line in text.splitlines() if f"{task.dataset}_task{task.task_id}" in line]
        assert all(cell in line for cell in task_cells(task))
    assert not shown(render_manifest(manifest.model_copy(update={"synthetic": False}))).startswith("SYNTHETIC")


def test_an_annotation_is_shown_with_its_texts_unchanged() -> None:
    server = ServerConfig(model="m")
    settings = BuildConfig(mbeir=Path("/M-BEIR"), teacher=TeacherConfig(server=server))
    query = Query(
        qid="8:1",
        query_txt=MARKUP,
        query_img_path="a.jpg",
        query_modality=Modality.IMAGE_TEXT,
        pos_cand_list=("8:2",),
        task_id=7,
    )
    annotation = Annotation("train/cirr/task7/8:1", query, "train", MARKUP, None, route=Route.REASONING)
    answer = TeacherAnswer(key="k", outcome=Outcome.OK, text=MARKUP, completion_tokens=7)
    annotation.attempts.append(Attempt((MARKUP,), answer))
    annotation.rejection = RejectionCause(Stage.REASON, "missing_answer", MARKUP)
    text = shown(render_annotation(annotation, settings))
    assert text.count(MARKUP) == 5  # instruction, query, prompt, raw answer, detail
    assert "/M-BEIR/a.jpg" in text
    assert "raw answer (7 tokens)" in text
    assert "rejected at reason: missing_answer" in text
    annotation.rejection = None
    assert "a record" in shown(render_annotation(annotation, settings))
