"""VLM2Vec: MMEB-train's columns, a config per dataset-task, and the file that configures its training data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pyarrow as pa
import yaml

from pipeline.export.parts import Part, header
from pipeline.export.samples import Sample, Side, side_of
from pipeline.export.writer_result import Written
from pipeline.mbeir.image_store import ImageStore
from schemas.mbeir import Modality

_IMAGE: Final = "<|image_1|>"
_SPLIT: Final = "original"
"""The split name that both versions of VLM2Vec load."""
_ROW_GROUP: Final = 1000
_NOTHING: Final = Side("", "", Modality.TEXT)


def vlm2vec(samples: Iterable[Sample], images: ImageStore, out: Path, negatives: int) -> Written:
    """Negatives after the first have their own columns (`neg_text_2` …), which its loaders ignore."""
    pairs = [("qry", "qry_image_path"), ("pos_text", "pos_image_path"), ("neg_text", "neg_image_path")]
    pairs += [(f"neg_text_{i}", f"neg_image_path_{i}") for i in range(2, negatives + 1)]
    schema = pa.schema([(column, pa.string()) for pair in pairs for column in pair])
    parts: dict[str, Part] = {}
    for sample in samples:
        negative_sides = [side_of(negative) for negative in sample.negatives]
        sides = [sample.query, sample.positive, *negative_sides, *[_NOTHING] * (len(pairs) - 2 - len(negative_sides))]
        row: dict[str, str] = {}
        for (text, image), side in zip(pairs, sides, strict=True):
            row |= {text: f"{_IMAGE}\n{side.text}" if side.image else side.text, image: side.image}
        name = sample.task.name
        if name not in parts:
            parts[name] = Part(out / name / "train-00000-of-00001.parquet", schema, rows=_ROW_GROUP)
        parts[name].add(row)
    for part in parts.values():
        part.close()
    paths = {name: [part.path.relative_to(out).as_posix()] for name, part in parts.items()}
    configs = {"default": [path for (path,) in paths.values()], **paths}
    tasks = {
        name: {
            "dataset_parser": "mmeb",
            "dataset_name": "OUT",
            "subset_name": name,
            "dataset_split": _SPLIT,
            "image_dir": ".",
            "weight": part.count,
        }
        for name, part in parts.items()
    }
    return Written(
        sum(part.count for part in parts.values()),
        header(configs, default="default", split=_SPLIT) if parts else "",
        (f"Dataset-tasks: {' '.join(parts)}",),
        {"train.yaml": yaml.safe_dump(tasks, sort_keys=False)},
    )
