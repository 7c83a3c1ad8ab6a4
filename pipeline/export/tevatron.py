"""Tevatron: queries that name documents, and the documents, with the images."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from pipeline.export.parts import Part, header
from pipeline.export.samples import Sample, Side, side_of
from pipeline.export.writer_result import IMAGE, IMAGE_FEATURE, Written, picture
from pipeline.mbeir.image_store import ImageStore

_IDS: Final = pa.list_(pa.string())
_QUERIES: Final = pa.schema(
    [
        ("query_id", pa.string()),
        ("query_text", pa.string()),
        ("query_image", IMAGE),
        ("positive_document_ids", _IDS),
        ("negative_document_ids", _IDS),
    ]
)
_DOCUMENTS: Final = pa.schema([("docid", pa.string()), ("text", pa.string()), ("image", IMAGE)])


def tevatron(samples: Iterable[Sample], images: ImageStore, out: Path, negatives: int) -> Written:
    """Queries with and without negatives go to separate files: Tevatron cannot draw negatives for a query that has none."""
    queries = _with_images(_QUERIES, "query_image")
    having, lacking = (Part(out / "train" / f"{name}-negatives.parquet", queries) for name in ("with", "without"))
    corpus = Part(out / "corpus" / "corpus.parquet", _with_images(_DOCUMENTS, "image"))
    known: set[str] = set()
    with having, lacking, corpus:
        for sample in samples:
            positives = [candidate for candidate in sample.positives if not side_of(candidate).says_nothing]
            for candidate in (*positives, *sample.negatives):
                if candidate.did not in known:
                    known.add(candidate.did)
                    side = side_of(candidate)
                    image, size = _picture(side, images)
                    corpus.add({"docid": candidate.did, "text": side.text, "image": image}, size)
            image, size = _picture(sample.query, images)
            (having if sample.negatives else lacking).add(
                {
                    "query_id": sample.row["qid"],
                    "query_text": sample.query.text,
                    "query_image": image,
                    "positive_document_ids": [candidate.did for candidate in positives],
                    "negative_document_ids": [candidate.did for candidate in sample.negatives],
                },
                size,
            )
    configs = {"train": (having, lacking), "with_negatives": (having,), "corpus": (corpus,)}
    files = {
        name: [part.path.relative_to(out).as_posix() for part in parts if part.count]
        for name, parts in configs.items()
        if any(part.count for part in parts)  # `datasets` loads no config without rows
    }
    counts = f"{having.count:,} queries list a negative, {lacking.count:,} none; {corpus.count:,} documents."
    return Written(having.count + lacking.count, header(files, default="train"), (counts,))


def _picture(side: Side, images: ImageStore) -> tuple[dict[str, Any] | None, int]:
    return picture(images, side.image) if side.image else (None, 0)


def _with_images(schema: pa.Schema, column: str) -> pa.Schema:
    """The schema, with metadata that makes `datasets` show the column as pictures."""
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": {column: IMAGE_FEATURE}}})})
