"""The real command in locales other than UTF-8."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.mbeir.conftest import edit_first
from tests.support.cli import mbeir_cot

LOCALES = (
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"PYTHONIOENCODING": "ascii"},
)


@pytest.mark.slow
@pytest.mark.parametrize("locale", LOCALES, ids=["C", "POSIX", "ascii-output"])
def test_texts_and_file_names_work_in_any_locale(mbeir: Path, locale: dict[str, str]) -> None:
    picture = mbeir / "mbeir_images" / "oven_images" / "11" / "Zürich 東京.jpg"
    picture.write_bytes(picture.with_name("q1.jpg").read_bytes())
    edit_first(
        mbeir / "query/val/mbeir_oven_task6_val.jsonl",
        query_img_path=str(picture.relative_to(mbeir)),
        query_txt="[/red] → 東京?",
    )
    done = mbeir_cot("mbeir", "check", mbeir, "--decode", own_process=True, **locale)
    assert "Traceback" not in done.stderr
    assert "image_missing" not in done.stdout + done.stderr
    picture.unlink()
    refused = mbeir_cot("mbeir", "check", mbeir, own_process=True, **locale)
    assert (refused.returncode, "image_missing" in refused.stdout) == (1, True)
