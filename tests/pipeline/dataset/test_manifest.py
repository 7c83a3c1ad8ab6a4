"""What decides a dataset's content is part of its config's digest, and what does not is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.dataset.manifest import config_sha256
from pocket.training.train_models import MODELS
from schemas.config import BuildConfig
from tests.support.builds import ROOT

POCKET = ROOT / "configs" / "pocket.yaml"


def digest(*overrides: str) -> str:
    model = MODELS / "teacher"
    return config_sha256(load_config(POCKET, BuildConfig, (f"teacher.server.model={model}", *overrides)))


@pytest.mark.parametrize(
    "change", ["verify.threshold=0.6", "teacher.server.max_pixels=1024", "screen.ngram=7", "teacher.sampling.temperature=0.1"]
)
def test_what_decides_the_content_counts(change: str) -> None:
    assert digest(change) != digest()


def test_another_tokenizer_counts_and_its_place_does_not(tmp_path: Path) -> None:
    here, there, other = (tmp_path / name for name in ("here", "there", "other"))
    for directory in (here, there, other):
        directory.mkdir()
        shutil.copy(MODELS / "teacher" / "tokenizer.json", directory)
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text + " ")
    assert digest(f"screen.tokenizer={here}") == digest(f"screen.tokenizer={there}") != digest(f"screen.tokenizer={other}")


@pytest.mark.parametrize("change", ["out=elsewhere", "teacher.server.dtype=float32", "workers=3"])
def test_where_and_how_does_not(change: str) -> None:
    assert digest(change) == digest()
