"""Records and rejections as Arrow: the columns of the dataset's files, with the features that `datasets` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
import pyarrow as pa

from schemas.record import Record, Rejection

_TEXTS: Final = pa.list_(pa.string())
_FACET_CONFIDENCES: Final = pa.field(
    "facet_confidences", pa.list_(pa.struct([pa.field("name", pa.string()), pa.field("confidence", pa.float64())]))
)
_QUERY_COLUMNS: Final = [
    pa.field("id", pa.string()),
    pa.field("qid", pa.string()),
    pa.field("dataset", pa.string()),
    pa.field("split", pa.string()),
    pa.field("task_id", pa.int8()),
    pa.field("query_modality", pa.string()),
    pa.field("cand_modality", pa.string()),
    pa.field("instruction", pa.string()),
    pa.field("query_text", pa.string()),
    pa.field("query_image", pa.string()),
    pa.field("positives", _TEXTS),
    pa.field("hard_negatives", _TEXTS),
    pa.field("multiplicity", pa.int32()),
]

RECORDS: Final = pa.schema(
    [
        *_QUERY_COLUMNS,
        pa.field("route", pa.string()),
        pa.field("route_policy", pa.string()),
        pa.field("assessment", pa.float64()),
        pa.field("facets", pa.list_(pa.struct([pa.field("name", pa.string()), pa.field("text", pa.string())]))),
        pa.field("reasoning", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("target", pa.string()),
        pa.field(
            "verdict",
            pa.struct(
                [pa.field("accepted", pa.bool_()), pa.field("confidence", pa.float64()), pa.field("verifier", pa.string())]
            ),
        ),
        pa.field(
            "provenance",
            pa.struct(
                [
                    pa.field("teacher", pa.string()),
                    pa.field("revision", pa.string()),
                    pa.field("prompt_sha256", pa.string()),
                    pa.field("temperature", pa.float64()),
                    pa.field("seed", pa.int64()),
                    pa.field("attempts", pa.int16()),
                    pa.field("prompt_tokens", pa.int32()),
                    pa.field("completion_tokens", pa.int32()),
                    pa.field("pipeline_version", pa.string()),
                    pa.field("reveal_target", pa.bool_()),
                ]
            ),
        ),
        _FACET_CONFIDENCES,
        pa.field("utility", pa.float64()),
    ]
)

REJECTIONS: Final = pa.schema(
    [
        *_QUERY_COLUMNS,
        pa.field("stage", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("raw_answer", pa.string()),
        pa.field("assessment", pa.float64()),
        pa.field("attempts", pa.int16()),
        pa.field("confidence", pa.float64()),
        _FACET_CONFIDENCES,
    ]
)


def records_table(rows: Sequence[Record]) -> pa.Table:
    return _table([_fields(row) for row in rows], RECORDS)


def rejections_table(rows: Sequence[Rejection]) -> pa.Table:
    return _table([vars(row) | {"facet_confidences": _confidences(row)} for row in rows], REJECTIONS)


def _fields(row: Record) -> dict[str, Any]:
    """What `model_dump` gives, in a fifth of its time."""
    nested: dict[str, Any] = {
        "facets": [vars(facet) for facet in row.facets],
        "verdict": vars(row.verdict) if row.verdict is not None else None,
        "provenance": vars(row.provenance),
        "facet_confidences": _confidences(row),
    }
    return vars(row) | nested


def _confidences(row: Record | Rejection) -> list[dict[str, Any]]:
    return [vars(facet) for facet in row.facet_confidences]


def _table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    if not rows:
        return schema.empty_table()
    columns = [pa.array([row[field.name] for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def with_features(schema: pa.Schema, *, image_column: str | None = None) -> pa.Schema:
    """The schema with the metadata from which `datasets` takes its features.

    Lists are written as ``[feature]``, which all its versions read. Since 4.0 it calls them `List`, which earlier versions do
    not know.
    """
    from datasets import Features, Image  # noqa: PLC0415 (it imports pandas and much else: only writers need it)

    features = Features.from_arrow_schema(schema)
    if image_column is not None:
        features[image_column] = Image()
    arrow: Any = features.arrow_schema
    info = orjson.loads(arrow.metadata[b"huggingface"])
    info["info"]["features"] = _lists_spelt_out(info["info"]["features"])
    return arrow.with_metadata({b"huggingface": orjson.dumps(info)})


def _lists_spelt_out(feature: Any) -> Any:
    if not isinstance(feature, dict):
        return feature
    if feature.get("_type") == "List":
        return [_lists_spelt_out(feature["feature"])]
    return {key: _lists_spelt_out(value) for key, value in feature.items()}
