"""An estimate from a sample that says nothing of the build is refused, with the cause."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bench.oracle import Oracle
from pipeline.annotate.estimate import estimate
from pipeline.config import load_config
from pipeline.serving.hosted import hosted_pair
from schemas.config import BuildConfig
from schemas.errors import InputError


@pytest.fixture
def bare(small_world: Path, tmp_path: Path) -> Path:
    """An M-BEIR root whose image disk is not mounted."""
    root = tmp_path / "M-BEIR"
    (root / "mbeir_images").mkdir(parents=True)
    for part in ("query", "cand_pool", "instructions"):
        (root / part).symlink_to(small_world / part)
    return root


def estimated(config: Path) -> Any:
    settings = load_config(config, BuildConfig, ())
    with hosted_pair(settings) as endpoints:
        return asyncio.run(estimate(settings, endpoints, 10, 0))


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_images_that_are_not_there(bare: Path, tmp_path: Path, oracle: Oracle, share: float) -> None:
    config = oracle.config(tmp_path, bare, input__datasets=["cirr", "nights"], early_stop__inputs=share)
    with pytest.raises(
        InputError, match=r"10 of 10 sampled queries were rejected for image_missing.* 'mbeir_images/"
    ) as caught:
        estimated(config)
    assert "their disk is mounted" in caught.value.remedy
    assert not oracle.answered()


@pytest.mark.slow
def test_no_query_is_left(bare: Path, tmp_path: Path, oracle: Oracle) -> None:
    (bare / "query").unlink()
    (bare / "query/train").mkdir(parents=True)
    (bare / "query/train/mbeir_cirr_train.jsonl").write_text("")
    with pytest.raises(InputError, match="no query") as caught:
        estimated(oracle.config(tmp_path, bare))
    assert "input.datasets" in caught.value.remedy
