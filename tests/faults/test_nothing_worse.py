"""A good dataset is not replaced by a worse one unless asked, and images that were rejected are checked again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.oracle import Oracle
from schemas.errors import CotError
from tests.faults.conftest import Build
from tests.support.builds import built, digests, rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def root(small_world: Path, tmp_path: Path) -> Path:
    shutil.copytree(small_world, tmp_path / "M-BEIR")
    return tmp_path / "M-BEIR"


def test_missing_images_do_not_replace_a_good_dataset(root: Path, tmp_path: Path, build: Build) -> None:
    with Oracle(tmp_path / "oracle.log") as oracle:
        config = oracle.config(tmp_path, root, input__datasets=["cirr", "nights"], early_stop__window=40)
        build(config)
        dataset = tmp_path / "out" / "dataset"
        before = digests(dataset)
        (root / "mbeir_images").rename(root / "elsewhere")
        (root / "mbeir_images").mkdir()
        with pytest.raises(CotError) as error:
            build(config, "route.threshold=0.4")
        said = str(error.value)
        assert "of the last queries were rejected for image_missing; the last: image 'mbeir_images/" in said
        assert "their disk is mounted" in said
        # without early stop (the build is too short, or it is off) the loss is found before publication
        said = built(config, "--set", "route.threshold=0.4", "--set", "early_stop.inputs=1", expect=2)
        assert "the build keeps 0 records" in said
        assert "input: image_missing (" in said
        assert "was not published" in said
        assert digests(dataset) == before
        assert rows(tmp_path / "out" / "dataset-unpublished") == []
        (root / "mbeir_images").rmdir()
        (root / "elsewhere").rename(root / "mbeir_images")
        asked = sum(oracle.answered().values())
        assert not build(config)[1]
        assert sum(oracle.answered().values()) == asked
        # much less than before: the remedy that the message names
        with pytest.raises(CotError, match="--replace"):
            build(config, "input.limit=20")
        assert digests(dataset) == before
        build(config, "input.limit=20", replace=True)
        assert len(rows(dataset)) <= 20
        assert not (tmp_path / "out" / "dataset-unpublished").exists()


def test_rejected_images_are_checked_again(root: Path, tmp_path: Path, build: Build) -> None:
    queries = [json.loads(line) for line in (root / "query/train/mbeir_cirr_train.jsonl").read_text().splitlines()]
    lost, cut = (root / query["query_img_path"] for query in queries[:2])
    whole = {path: path.read_bytes() for path in (lost, cut)}
    with Oracle(tmp_path / "oracle.log") as oracle:
        config = oracle.config(tmp_path, root, input__datasets=["cirr"])
        build(config)
        undisturbed = digests(tmp_path / "out" / "dataset")
        shutil.rmtree(tmp_path / "out" / "dataset")
        lost.unlink()
        cut.write_bytes(whole[cut][:-300])
        build(config)
        reasons = {row["reason"] for row in rows(tmp_path / "out" / "dataset", "rejected")}
        assert {"image_missing", "image_truncated"} <= reasons
        assert not build(config)[1]
        for path, content in whole.items():
            path.write_bytes(content)
        assert build(config)[1]
        assert digests(tmp_path / "out" / "dataset") == undisturbed
        assert max(oracle.answered().values()) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"refuse": "Quer"}, "cannot do what the build asks"),  # found before the work begins
        ({"garbage": "Reason:"}, r"none of 24 queries was kept: reason: missing_reasoning \(24\)"),
    ],
)
def test_a_build_that_keeps_nothing_fails_with_the_reason(
    small_world: Path, tmp_path: Path, build: Build, changes: dict[str, Any], said: str
) -> None:
    with Oracle(tmp_path / "oracle.log", **changes) as oracle:
        config = oracle.config(
            tmp_path, small_world, input__datasets=["cirr"], input__limit=24, route__policy="by-modality", repair__attempts=1
        )
        with pytest.raises(CotError, match=said):
            build(config)
    assert not (tmp_path / "out" / "dataset").exists()
