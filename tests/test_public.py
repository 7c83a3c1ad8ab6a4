"""The public API of the packages: complete, light to import, and documented."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
import trainer
from pipeline import open_dataset
from schemas.errors import InputError


def test_importing_the_packages_is_light() -> None:
    code = (
        "import sys, pipeline, trainer; heavy = {'torch', 'transformers', 'faiss', 'ray', 'pyarrow', 'numpy', 'datasets'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", [pipeline, trainer], ids=lambda one: one.__name__)
def test_every_public_name_exists_and_is_documented(package: object) -> None:
    names = package.__all__  # type: ignore[attr-defined]
    assert all(getattr(package, name).__doc__ for name in names)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_a_dataset_is_opened_from_any_location(pictured_build: Path, tmp_path: Path) -> None:
    dataset = open_dataset(str(pictured_build))
    assert dataset.records().num_rows == dataset.manifest.records > 0
    assert dataset.rejections(["id", "reason"]).num_rows == dataset.manifest.rejections > 0
    rows = list(dataset.rows("data", ["id", "route"]))
    assert len(rows) == dataset.manifest.records
    assert dataset.row(rows[0]["id"])[1]["route"] == rows[0]["route"]
    assert open_dataset(pictured_build / "dataset").manifest == dataset.manifest
    with pytest.raises(InputError, match="contains no finished dataset"):
        open_dataset(tmp_path)
