"""Images on another disk, with the real commands: following the remedy of a refusal makes the command work."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bench.oracle import Oracle
from tests.support.builds import built, rows
from tests.support.cli import mbeir_cot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def linked(small_world: Path, tmp_path: Path) -> Path:
    root = tmp_path / "mbeir"
    shutil.copytree(small_world, root)
    (tmp_path / "disk").mkdir()
    (root / "mbeir_images").rename(tmp_path / "disk" / "images")
    (root / "mbeir_images").symlink_to(tmp_path / "disk" / "images")
    return root


def test_build_preview_export_and_report(linked: Path, tmp_path: Path, oracle: Oracle) -> None:
    disk = ("--image-root", tmp_path / "disk")
    config = oracle.config(tmp_path, linked, input__limit=40, output__with_images=True, teacher__images="data_url")
    shown = mbeir_cot("preview", config, "-n", "40", timeout=200)
    assert "image_outside_root" in shown.stdout
    assert "image_outside_root" not in mbeir_cot("preview", config, "-n", "40", *disk, timeout=200).stdout
    built(config, *map(str, disk))
    dataset = tmp_path / "out" / "dataset"
    assert not {row["reason"] for row in rows(dataset, "rejected")} & {"image_outside_root"}
    assert any(row["query_image"] for row in rows(dataset, "with_images"))

    # commands on the build know its roots
    exported = mbeir_cot("export", tmp_path / "out", "--format", "sentence-transformers", "--out", tmp_path / "st", timeout=200)
    assert exported.returncode == 0, exported.stderr
    assert mbeir_cot("report", tmp_path / "out", timeout=200).returncode == 0
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8").count("data:image/jpeg") > 5

    # the dataset without its build does not: name the root again
    alone = tmp_path / "alone"
    shutil.copytree(dataset, alone)
    export = ("export", alone, "--format", "sentence-transformers", "--mbeir", linked, "--out", tmp_path / "st2")
    refused = mbeir_cot(*export, timeout=200)
    assert refused.returncode == 2
    assert "--image-root" in refused.stderr
    done = mbeir_cot(*export, *disk, timeout=200)
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "st").glob("*.parquet"))
    assert names
    for name in names:
        assert pq.read_table(tmp_path / "st2" / name).equals(pq.read_table(tmp_path / "st" / name))
