"""The page on which people judge verdicts and routes: one HTML file that needs no network and no server.

It does not show what the teacher or the verifier decided. The labels stay in the browser until they are saved as `labels.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from pipeline.dataset.built_dataset import BuiltDataset
from pipeline.mbeir.candidates import first_positives
from pipeline.mbeir.stores import build_store
from pipeline.mbeir.thumbnails import Thumbnails
from pipeline.report.label_sample import LabelItem, draw_items, label_items
from pipeline.report.page import embedded
from pipeline.traces.families import family_of
from pipeline.traces.parser import parse_trace
from schemas.errors import InputError
from schemas.labels import LabelKind
from schemas.trace import Trace

_HERE: Final = Path(__file__).parent
_SIDE: Final = 384

QUESTIONS: Final = {
    LabelKind.VERDICT: "Does the answer describe the right result, and satisfy the query?",
    LabelKind.ROUTE: "Does it take a step of thought to find what is sought?",
}
HINTS: Final = {
    LabelKind.VERDICT: "No if any stated detail is wrong, or if it is so vague that many other results would fit. "
    "Wording does not matter.",
    LabelKind.ROUTE: "No if matching what the query shows or says, as it is, would find it. "
    "Yes if something must be changed, deduced, compared, counted or singled out first.",
}


def label_page(dataset: BuiltDataset, count: int, *, seed: int = 0, image_roots: Sequence[Path] = ()) -> tuple[str, int]:
    """(the HTML of the page, the number of its items). image_roots: added to the build's.

    Raises InputError where the build's M-BEIR directory is not here, or where there is nothing to judge.
    """
    settings = dataset.settings(image_roots)
    if settings is None or not settings.mbeir.is_dir():
        raise InputError(
            f"the M-BEIR directory that {dataset.directory} was built from is not here, so its images cannot be shown",
            "name the directory of a build (with work/ in it) on the machine that has its M-BEIR",
        )
    items = draw_items(label_items(dataset), count, seed=seed)
    if not items:
        raise InputError(f"{dataset.directory} has no verdict and no route to judge", "name a finished build's directory")
    rows = _rows(dataset, items)
    positives = first_positives(settings, [row for row in rows.values() if row["positives"]])
    pictures = Thumbnails(build_store(settings), _SIDE)
    shown = []
    for item in items:
        row = rows[item.kind, item.id]
        one: dict[str, Any] = {
            "kind": item.kind,
            "id": item.id,
            "shown": item.shown,
            "instruction": row["instruction"],
            "text": row["query_text"] or "",
            "picture": pictures.add(row["query_image"]),
        }
        if item.kind is LabelKind.VERDICT:
            positive = positives.get(item.id)
            one |= _trace(row)
            one["positive_text"] = (positive.txt or "") if positive is not None else ""
            one["positive_picture"] = pictures.add(positive.img_path) if positive is not None else ""
        shown.append(one)
    manifest = dataset.manifest
    data = {
        "dataset": manifest.name,
        "config_sha256": manifest.config_sha256,
        "questions": {str(kind): text for kind, text in QUESTIONS.items()},
        "hints": {str(kind): text for kind, text in HINTS.items()},
        "items": shown,
        "pictures": dict(pictures.found),
    }
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(_HERE), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=True
    )
    html = environment.get_template("report.label.html.jinja").render(
        title=f"{manifest.name}: labels",
        banner="SYNTHETIC: the queries, images and facts of this dataset are invented (pocket world)."
        if manifest.synthetic
        else "",
        count=len(items),
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),  # noqa: S704 (our own files)
        own_style=Markup((_HERE / "report.label.css").read_text(encoding="utf-8")),  # noqa: S704
        script=Markup((_HERE / "report.label.js").read_text(encoding="utf-8")),  # noqa: S704
        data=embedded(data),
    )
    return html, len(items)


def _rows(dataset: BuiltDataset, items: Sequence[LabelItem]) -> dict[tuple[LabelKind, str], dict[str, Any]]:
    """The row behind each item: of a verdict on a rejected trace its rejection, otherwise the record where there is one."""
    wanted = pa.array(sorted({item.id for item in items}))
    by_id: dict[str, dict[str, dict[str, Any]]] = {"data": {}, "rejected": {}}
    for part in by_id:
        if part in dataset.parts():
            table = dataset.table(part)  # type: ignore[arg-type]
            rows = table.filter(pc.is_in(table["id"], wanted)).to_pylist()
            by_id[part] = {row["id"]: row for row in rows}
    found = {}
    for item in items:
        refused = item.kind is LabelKind.VERDICT and not item.decision
        first, second = ("rejected", "data") if refused else ("data", "rejected")
        found[item.kind, item.id] = by_id[first].get(item.id) or by_id[second][item.id]
    return found


def _trace(row: dict[str, Any]) -> dict[str, Any]:
    """The facets and the answer of a record or a rejection."""
    family = family_of(row["task_id"])
    if row.get("answer"):
        labels = {facet.name: facet.label for facet in family.facets}
        return {"facets": [[labels[one["name"]], one["text"]] for one in row["facets"]], "answer": row["answer"]}
    trace = parse_trace(row["raw_answer"], family)
    assert isinstance(trace, Trace)
    return {"facets": [[facet.label, facet.text] for facet in trace.facets], "answer": trace.answer}
