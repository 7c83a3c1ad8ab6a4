"""Near-duplicates become rejections that keep the teacher's answer; row groups and features of the shards."""

from __future__ import annotations

from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.arrow_schema import RECORDS, REJECTIONS, with_features
from pipeline.dataset.near_duplicates import raw_answer
from pipeline.dataset.shards import ShardWriter, image_schema
from pipeline.traces.families import family_of
from pipeline.traces.parser import parse_trace
from schemas.trace import Trace


def test_the_raw_answer_of_a_near_duplicate_parses_as_its_trace() -> None:
    family = family_of(7)
    facets = [{"name": facet.name, "text": f"about the {facet.name}"} for facet in family.facets]
    parsed = parse_trace(raw_answer({"task_id": 7, "facets": facets, "answer": "a black disc, day"}), family)
    assert isinstance(parsed, Trace)
    assert parsed.answer == "a black disc, day"
    assert [(facet.name, facet.text) for facet in parsed.facets] == [(f["name"], f["text"]) for f in facets]


SIZES = [40, 40, 30, 0, 150, 10, 10, 10, 10, 10, 90, 20, *[1] * 25]
"""Bytes of the rows' images; 0: the row has none."""


def _pictured(sizes: list[int]) -> pa.Table:
    schema = image_schema()
    images = [{"bytes": bytes(size), "path": "x.jpg"} if size else None for size in sizes]
    columns = {
        field.name: pa.array(images, field.type) if field.name == "query_image" else pa.nulls(len(sizes), field.type)
        for field in schema
    }
    return pa.table([columns[name] for name in schema.names], schema=schema)


@pytest.mark.parametrize("arriving", [1, 3, 100])
def test_row_groups_with_images_are_bounded_in_bytes_for_any_chunking(tmp_path: Path, arriving: int) -> None:
    shards = ShardWriter(
        tmp_path / "with_images", "train", image_schema(), total=len(SIZES), rows_per_shard=30, row_group=20, group_bytes=100
    )
    for start in range(0, len(SIZES), arriving):
        shards.write(_pictured(SIZES[start : start + arriving]))
    files = [pq.ParquetFile(tmp_path / file.path) for file in shards.close()]
    groups = [[file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)] for file in files]
    # 40+40 | 30+0 | 150 alone | 5 x 10 | 90 | 20+18 x 1 (shard full at 30) | the rest
    assert groups == [[2, 2, 1, 5, 1, 19], [7]]
    at = 0
    for count in [*groups[0], *groups[1]]:
        assert sum(SIZES[at : at + count]) <= 100 or count == 1
        at += count


@pytest.mark.parametrize("schema", [RECORDS, REJECTIONS, image_schema()])
def test_features_are_written_so_that_every_version_of_datasets_reads_them(schema: pa.Schema) -> None:
    """Versions before 4.0 do not know the name `List`."""
    from datasets import Features, List

    pictured = "query_image" if pa.types.is_struct(schema.field("query_image").type) else None
    written = with_features(schema, image_column=pictured)
    info = orjson.loads(written.metadata[b"huggingface"])["info"]["features"]
    assert b'"List"' not in written.metadata[b"huggingface"]
    assert info["positives"] == [{"dtype": "string", "_type": "Value"}]
    read = Features.from_arrow_schema(written)
    assert read.type == Features({**read}).type
    assert read.arrow_schema.field("positives").type == pa.list_(pa.string())
    assert isinstance(read["positives"], List | list)
