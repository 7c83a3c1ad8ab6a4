"""Near-duplicates: records with the same query and answer as an earlier record. The first one is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.arrow_schema import RECORDS, REJECTIONS
from pipeline.dataset.staging import Staging
from pipeline.traces.families import family_of
from pipeline.traces.words import normalised
from schemas.record import EMB_TOKEN, Record, Route, ScreenReason, Stage
from schemas.trace import FacetText, Trace


def near_duplicate_key(record: Record) -> int:
    """Equal for records whose query and normalised answer are the same; 0 for those that do not reason. 63 bits."""
    if record.route is Route.BYPASS:
        return 0
    query = f"{record.dataset}\0{record.task_id}\0{normalised(record.query_text or '')}\0{record.query_image or ''}"
    digest = hashlib.blake2b(f"{query}\0{normalised(record.answer or '')}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 1) | 1


def find_repeats(staging: Staging) -> dict[int, NDArray[np.int64]]:
    """Chunk -> rows whose near-duplicate key occurred before."""
    numbers = range(len(staging))
    lengths = [len(staging.keys[number]) for number in numbers]
    keys = np.concatenate([staging.keys[number] for number in numbers]) if lengths else np.empty(0, np.int64)
    _, first = np.unique(keys, return_index=True)
    is_repeat = np.ones(len(keys), bool)
    is_repeat[first] = False
    is_repeat[keys == 0] = False
    repeats, start = {}, 0
    for number, length in zip(numbers, lengths, strict=True):
        rows = np.flatnonzero(is_repeat[start : start + length])
        if len(rows):
            repeats[number] = rows
        start += length
    return repeats


def separate_repeats(
    staging: Staging, repeated: dict[int, NDArray[np.int64]], *, bypass: bool
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """(records, rejections) of each chunk: repeats become rejections, and with `bypass` bypass records as well."""
    for number in range(len(staging)):
        records, rejections = staging.get(number)
        rows = repeated.get(number)
        if rows is not None:
            again = records.take(pa.array(rows))
            rejections = _in_order(pa.concat_tables([rejections, _as_rejections(again)]))
            keep = np.ones(len(records), bool)
            keep[rows] = False
            records = records.filter(pa.array(keep))
            if bypass:
                records = _in_order(pa.concat_tables([records, _as_bypass(again)]))
        yield records, rejections


def _in_order(table: pa.Table) -> pa.Table:
    """A chunk's rows in the dataset's order: dataset, task, number of the qid."""
    numbers = pc.cast(pc.utf8_slice_codeunits(table["qid"], 2), pa.int64())
    keyed = table.append_column("number", numbers)
    order = pc.sort_indices(keyed, [("dataset", "ascending"), ("task_id", "ascending"), ("number", "ascending")])
    return table.take(order)


def _as_rejections(records: pa.Table) -> pa.Table:
    count = len(records)
    columns = {name: records[name] for name in REJECTIONS.names if name in records.column_names}
    columns |= {
        "stage": pa.array([str(Stage.SCREEN)] * count),
        "reason": pa.array([str(ScreenReason.NEAR_DUPLICATE)] * count),
        "detail": pa.array(["an earlier record has the same query and answer"] * count),
        "raw_answer": pa.array([raw_answer(row) for row in records.select(["task_id", "facets", "answer"]).to_pylist()]),
        "attempts": pc.struct_field(records["provenance"], "attempts"),
        "confidence": pc.struct_field(records["verdict"], "confidence"),
    }
    return pa.table([columns[name] for name in REJECTIONS.names], schema=REJECTIONS)


def raw_answer(row: dict[str, Any]) -> str:
    """The trace as the teacher writes it, restored from the record."""
    family = family_of(row["task_id"])
    labels = {facet.name: facet.label for facet in family.facets}
    facets = tuple(FacetText(name=f["name"], label=labels[f["name"]], text=f["text"]) for f in row["facets"])
    return Trace(family=family.name, facets=facets, answer=row["answer"]).render()


def _as_bypass(records: pa.Table) -> pa.Table:
    count = len(records)
    empty = {
        "route": pa.array([str(Route.BYPASS)] * count),
        "facets": pa.array([[]] * count, RECORDS.field("facets").type),
        "reasoning": pa.nulls(count, pa.string()),
        "answer": pa.nulls(count, pa.string()),
        "target": pa.array([EMB_TOKEN] * count),
        "verdict": pa.nulls(count, RECORDS.field("verdict").type),
        "facet_confidences": pa.array([[]] * count, RECORDS.field("facet_confidences").type),
    }
    return pa.table([empty.get(name, records[name]) for name in RECORDS.names], schema=RECORDS)
