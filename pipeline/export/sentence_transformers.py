"""sentence-transformers: one Parquet file for all rows that can share a batch's columns, with the images.

A column has one form, as Parquet columns and the losses' inputs require: a text, an image, or both, by name. The form follows
from the declared modality, so an image,text candidate without text is both, with an empty text. Rows of another form, or with
fewer negatives, go to separate files: a missing value would end a training run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa

from pipeline.export.parts import Part, header
from pipeline.export.samples import Sample, Side, side_of
from pipeline.export.writer_result import IMAGE, IMAGE_FEATURE, Written, picture
from pipeline.mbeir.image_store import ImageStore
from schemas.mbeir import DatasetTask, Modality

Form = Literal["text", "image", "both"]
_TYPES: Final = {
    "text": pa.string(),
    "image": IMAGE,
    "both": pa.struct([("image", IMAGE), ("text", pa.string())]),
}
_FEATURES: Final[dict[Form, Any]] = {
    "text": {"dtype": "string", "_type": "Value"},
    "image": IMAGE_FEATURE,
    "both": {"image": IMAGE_FEATURE, "text": {"dtype": "string", "_type": "Value"}},
}
_TAKEN_FOR_FILES: Final = ("http://", "https://", "data:image/")
_Key = tuple[DatasetTask, tuple[Form, ...]]


def sentence_transformers(samples: Iterable[Sample], images: ImageStore, out: Path, negatives: int) -> Written:
    """anchor, positive and negative (or negative_1 … negative_n), with a file per dataset-task and form."""
    parts: dict[_Key, Part] = {}
    task: DatasetTask | None = None
    for sample in samples:
        if sample.task != task:
            for part in parts.values():
                part.flush()
            task = sample.task
        sides = [sample.query, sample.positive, *sorted(map(side_of, sample.negatives), key=form_of)]
        forms = tuple(map(form_of, sides))
        key = (sample.task, forms)
        if key not in parts:
            parts[key] = Part(out / f"{_name(sample.task, forms, negatives)}.parquet", _schema(forms))
        values, sizes = zip(*(_value(side, form, images) for side, form in zip(sides, forms, strict=True)), strict=True)
        parts[key].add(dict(zip(_columns(len(sides) - 2), values, strict=True)), sum(sizes))
    for part in parts.values():
        part.close()
    named = {part.path.stem: [part.path.name] for part in parts.values()}
    largest = max(parts.values(), key=lambda part: part.count).path.stem if parts else ""
    table = ("| config | records |", "|---|---|", *(f"| {part.path.stem} | {part.count:,} |" for part in parts.values()))
    return Written(sum(part.count for part in parts.values()), header(named, default=largest), table)


def form_of(side: Side) -> Form:
    if not side.image:
        return "text"
    return "both" if side.modality.has_text or side.text else "image"


def _value(side: Side, form: Form, images: ImageStore) -> tuple[Any, int]:
    """A value as sentence-transformers takes it, and the size of its image in bytes."""
    if form == "text":
        return _a_text(side.text), 0
    image, size = picture(images, side.image)
    return (image if form == "image" else {"image": image, "text": side.text}), size


def _a_text(text: str) -> str:
    """The text; a space before an address keeps sentence-transformers from opening it as a picture."""
    return f" {text}" if text.startswith(_TAKEN_FOR_FILES) else text


def _columns(negatives: int) -> list[str]:
    return ["anchor", "positive", *(["negative"] if negatives == 1 else [f"negative_{i + 1}" for i in range(negatives)])]


def _schema(forms: tuple[Form, ...]) -> pa.Schema:
    columns = _columns(len(forms) - 2)
    features = {column: _FEATURES[form] for column, form in zip(columns, forms, strict=True)}
    schema = pa.schema([(column, _TYPES[form]) for column, form in zip(columns, forms, strict=True)])
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _name(task: DatasetTask, forms: tuple[Form, ...], asked: int) -> str:
    """The dataset-task, and how a file differs from its main one."""
    anchor, positive, *others = forms
    parts = [task.name]
    if len(others) < asked:
        parts.append("1-negative" if len(others) == 1 else f"{len(others)}-negatives")
    if anchor != _declared(task.query_modality, query=True):
        parts.append(f"from-{anchor}")
    candidate = _declared(task.cand_modality)
    if positive != candidate:
        parts.append(f"to-{positive}")
    if any(form != candidate for form in others):
        parts.append("not-" + "-".join(others))
    return "-".join(parts)


def _declared(modality: Modality, *, query: bool = False) -> Form:
    """The form of a modality. A query has an instruction, so one with an image is both."""
    if not modality.has_image:
        return "text"
    return "both" if query or modality.has_text else "image"
