"""A good dataset is compared with what would replace it, also if its manifest cannot be read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.dataset.publication_guard import refuse_worse, set_aside
from schemas.errors import BuildError
from schemas.manifest import Manifest
from tests.pipeline.dataset.test_earlier import EARLIER


@pytest.mark.parametrize("manifest", ["whole", "of another version", "damaged", "lost"])
def test_a_smaller_dataset_is_set_aside(tmp_path: Path, manifest: str) -> None:
    place = tmp_path / "dataset"
    shutil.copytree(EARLIER / "dataset", place)
    file = place / "manifest.json"
    good = Manifest.model_validate_json(file.read_bytes())
    match manifest:
        case "of another version":
            file.write_text('{"version": 99}')
        case "damaged":
            file.write_bytes(file.read_bytes()[:100])
        case "lost":
            file.unlink()
    for records, refused in ((3, True), (good.records, False)):
        written = tmp_path / f"new-{records}"
        written.mkdir()
        new = good.model_copy(update={"records": records})
        if refused:
            with pytest.raises(BuildError, match="keeps 3 records, the dataset in .* has 24.*"):
                refuse_worse(new, written, place, 0.9)
            assert set_aside(place).is_dir()
        else:
            refuse_worse(new, written, place, 0.9)
            assert written.is_dir()
