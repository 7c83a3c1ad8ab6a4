from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.builds import digests


@pytest.fixture
def copied(pictured_build: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pictured_build / "dataset", tmp_path / "copy"))


def rewritten(dataset: Path, **changes: object) -> None:
    """Changes values in the first row of the data, and makes the manifest agree with the file."""
    manifest = json.loads((dataset / "manifest.json").read_text())
    file = next(file for file in manifest["files"] if file["path"].startswith("data/"))
    path = dataset / file["path"]
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0] |= changes
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)
    file |= {"bytes": path.stat().st_size, "sha256": digests(dataset)[file["path"]]}
    (dataset / "manifest.json").write_text(json.dumps(manifest))
