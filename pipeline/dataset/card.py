"""The parts of a data card beyond counts: distributions over the records, and one example of each task family."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from pipeline.mbeir.candidates import first_positives
from pipeline.mbeir.image_store import ImageProblem, ImageStore
from pipeline.mbeir.stores import build_store
from pipeline.mbeir.thumbnails import jpeg
from pipeline.traces.families import FAMILIES, family_of
from schemas.config import BuildConfig
from schemas.manifest import CardExample, DataFile, Spread

ASSETS: Final = "assets"
_SIDE: Final = 320
_COLUMNS: Final = [
    "id",
    "split",
    "dataset",
    "task_id",
    "route",
    "assessment",
    "positives",
    "query_image",
    "reasoning",
    "answer",
]


def spreads(dataset: Path, files: Sequence[DataFile]) -> dict[str, Spread]:
    """Words of reasoning and answer, the verifier's confidences (records that reason); tokens (all records)."""
    columns = ["route", "reasoning", "answer", "verdict", "provenance", "facet_confidences", "utility"]
    rows = _rows(dataset, files, columns)
    thinks = rows.filter(pc.equal(rows["route"], "reasoning"))
    measured = {
        "words of reasoning": _words(thinks["reasoning"]),
        "words of the answer": _words(thinks["answer"]),
        "tokens the teacher read, a record": pc.struct_field(rows["provenance"], "prompt_tokens").to_numpy(),
        "tokens the teacher wrote, a record": pc.struct_field(rows["provenance"], "completion_tokens").to_numpy(),
    }
    found = {name: _spread(values) for name, values in measured.items() if len(values)}
    for route in ("reasoning", "bypass"):
        utility = pc.drop_null(rows.filter(pc.equal(rows["route"], route))["utility"]).to_numpy()
        if len(utility):
            found[f"measured utility, {route}"] = _spread(utility, digits=3)
    confidences = {"the answer": pc.drop_null(pc.struct_field(thinks["verdict"], "confidence")).to_numpy()}
    judged = pc.list_flatten(thinks["facet_confidences"])
    names = pc.struct_field(judged, "name")
    for facet in (facet.name for family in FAMILIES.values() for facet in family.facets):
        confidences[facet] = pc.struct_field(judged, "confidence").filter(pc.equal(names, facet)).to_numpy()
    return found | {
        f"verifier's confidence in {name}": _spread(values, digits=3) for name, values in confidences.items() if len(values)
    }


def examples(config: BuildConfig, dataset: Path, files: Sequence[DataFile]) -> tuple[list[CardExample], list[DataFile]]:
    """One reasoning record of each family that has any, and the files of its images below ``assets/``."""
    rows = _rows(dataset, files, _COLUMNS)
    store = build_store(config)
    shown, written = [], []
    for name in FAMILIES:
        tasks = pa.array([task for task in range(9) if family_of(task).name == name], pa.int8())
        fitting = rows.filter(pc.and_(pc.equal(rows["route"], "reasoning"), pc.is_in(rows["task_id"], tasks)))
        if not len(fitting):
            continue
        row = fitting.slice(0, 1).to_pylist()[0]
        positive = first_positives(config, [row]).get(row["id"])
        pictures = {"query": row["query_image"], "positive": positive.img_path if positive is not None else None}
        assets = {}
        for role, path in pictures.items():
            file = _picture(store, path, dataset, f"{ASSETS}/{name}_{role}.jpg")
            assets[role] = file.path if file is not None else ""
            written += [file] if file is not None else []
        text = (positive.txt or "") if positive is not None else ""
        shown.append(
            CardExample(
                family=name,
                id=row["id"],
                query_image=assets["query"],
                positive_text=text[:400],
                positive_image=assets["positive"],
            )
        )
    return shown, written


def _picture(store: ImageStore, path: str | None, dataset: Path, name: str) -> DataFile | None:
    if not path:
        return None
    try:
        data = jpeg(store.open(path), _SIDE)
    except ImageProblem:
        return None
    place = dataset / name
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(data)
    return DataFile(path=name, sha256=hashlib.sha256(data).hexdigest(), rows=0, bytes=len(data))


def _rows(dataset: Path, files: Sequence[DataFile], columns: list[str]) -> pa.Table:
    paths = [str(dataset / file.path) for file in files if file.path.startswith("data/")]
    return pads.dataset(paths, format="parquet").to_table(columns=columns)


def _words(texts: pa.ChunkedArray) -> Any:
    return np.array([len(text.split()) for text in texts.to_pylist()], float)


def _spread(values: Any, digits: int = 1) -> Spread:
    least, p5, median, p95, greatest = (round(float(v), digits) for v in np.percentile(values, [0, 5, 50, 95, 100]))
    return Spread(least=least, p5=p5, median=median, p95=p95, greatest=greatest)
