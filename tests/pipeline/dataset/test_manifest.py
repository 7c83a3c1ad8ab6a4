"""The digest of a config covers exactly the settings that decide a dataset's content."""

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
def test_settings_that_decide_the_content_change_the_digest(change: str) -> None:
    assert digest(change) != digest()


def test_another_tokenizer_changes_the_digest_and_its_path_does_not(tmp_path: Path) -> None:
    here, there, other = (tmp_path / name for name in ("here", "there", "other"))
    for directory in (here, there, other):
        directory.mkdir()
        shutil.copy(MODELS / "teacher" / "tokenizer.json", directory)
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text + " ")
    assert digest(f"screen.tokenizer={here}") == digest(f"screen.tokenizer={there}") != digest(f"screen.tokenizer={other}")


@pytest.mark.parametrize("change", ["out=elsewhere", "teacher.server.dtype=float32", "workers=3", "ledger.retry_failed=true"])
def test_settings_about_where_and_how_do_not_change_the_digest(change: str) -> None:
    assert digest(change) == digest()
