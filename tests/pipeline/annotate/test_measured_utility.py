"""Measured utilities in a build: the file, the column and the routes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.oracle import Oracle
from pipeline.annotate.measured_utility import Utilities
from pipeline.annotate.preview import annotate_queries
from pipeline.annotate.record_builder import RecordBuilder
from pipeline.annotate.worker import AnnotationWorker
from pipeline.config import load_config
from pipeline.dataset.manifest import config_sha256
from schemas.config import BuildConfig
from schemas.errors import InputError
from schemas.record import Route


def write(path: Path, values: dict[str, float | None]) -> Path:
    pq.write_table(pa.table({"id": list(values), "utility": pa.array(list(values.values()), pa.float32())}), path)
    return path


def settings(oracle: Oracle, directory: Path, world: Path, **changes: Any) -> BuildConfig:
    return load_config(oracle.config(directory, world, input__limit=40, **changes), BuildConfig)


def test_a_build_routes_by_utility_and_keeps_it(oracle: Oracle, tmp_path: Path, small_world: Path) -> None:
    plain = settings(oracle, tmp_path, small_world, route__policy="by-modality")
    ids = [one.id for one in annotate_queries(plain, limit=40)]
    values: dict[str, float | None] = {identifier: n / 40 - 0.5 for n, identifier in enumerate(ids[:-2])}
    values[ids[-2]] = None
    file = write(tmp_path / "utility.parquet", values)
    config = settings(
        oracle, tmp_path, small_world, route={"policy": "utility", "utility": str(file), "utility_threshold": 0.11}
    )
    found = annotate_queries(config, limit=40)
    rows = RecordBuilder(AnnotationWorker(config, None).annotator)
    records = 0
    for annotation in found:
        value = values.get(annotation.id)
        assert (annotation.route is Route.REASONING) == (value is not None and value > 0.11)
        assert annotation.assess_answer is None
        record, _ = rows.rows(annotation)
        if record is not None:
            records += 1
            assert record.utility == (pytest.approx(value, abs=1e-6) if value is not None else None)
    assert records > 20
    moved = write(tmp_path / "moved.parquet", values)
    other = config.model_copy(update={"route": config.route.model_copy(update={"utility": moved})})
    assert config_sha256(config) == config_sha256(other)  # its content counts, not its path
    write(moved, values | {ids[0]: 0.9})
    assert config_sha256(config) != config_sha256(other)


def test_a_file_that_is_no_file_of_utilities_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    pq.write_table(pa.table({"id": ["train/cirr/task7/8:1"]}), tmp_path / "other.parquet")
    for name in ("absent.parquet", "damaged.parquet", "other.parquet"):
        with pytest.raises(InputError, match=r"route\.utility: .* cannot be read"):
            Utilities(tmp_path / name)
    assert len(Utilities(write(tmp_path / "good.parquet", {"train/cirr/task7/8:1": 0.5, "train/nights/task4/6:2": None}))) == 1
