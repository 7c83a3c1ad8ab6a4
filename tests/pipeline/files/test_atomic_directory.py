from __future__ import annotations

from pathlib import Path

import pytest

import pipeline.files.atomic_directory
from pipeline.files.atomic_directory import recover_directory, replace_directory, staging_path


def version(directory: Path, text: str) -> Path:
    directory.mkdir(parents=True)
    (directory / "data").mkdir()
    (directory / "data" / "file").write_text(text)
    return directory


def text_at(place: Path) -> str:
    return (place / "data" / "file").read_text()


@pytest.mark.parametrize("exchange", [True, False])
def test_the_new_directory_replaces_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(pipeline.files.atomic_directory, "_exchange", lambda first, second: False)
    place = tmp_path / "dataset"
    replace_directory(version(staging_path(place), "first"), place)
    assert text_at(place) == "first"
    replace_directory(version(staging_path(place), "second"), place)
    assert text_at(place) == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_a_kill_between_two_renames_is_repaired(tmp_path: Path) -> None:
    place = tmp_path / "dataset"
    version(tmp_path / ".dataset.old", "old")
    version(staging_path(place), "new")
    recover_directory(place)
    assert text_at(place) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_a_kill_after_the_renames_leaves_the_new_directory(tmp_path: Path) -> None:
    place = tmp_path / "dataset"
    version(tmp_path / ".dataset.old", "old")
    version(place, "new")
    recover_directory(place)
    assert text_at(place) == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]
