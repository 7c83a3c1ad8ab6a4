"""What is found before anything is sent."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.dataset.built_dataset import BuiltDataset
from pipeline.hub.check import NotFitToPush, check
from tests.pipeline.hub.conftest import rewritten

pytestmark = [pytest.mark.slow]


def refusal(dataset: Path) -> str:
    with pytest.raises(NotFitToPush) as caught:
        check(BuiltDataset.open(dataset))
    return str(caught.value)


def test_a_complete_dataset_passes(copied: Path) -> None:
    rows: list[int] = []
    check(BuiltDataset.open(copied), rows.append)
    manifest = BuiltDataset.open(copied).manifest
    assert sum(rows) == manifest.records + manifest.rejections


def test_damage_is_found(copied: Path) -> None:
    shard = next((copied / "data").glob("*.parquet"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert "has a SHA-256 that differs" in refusal(copied)
    shard.unlink()
    assert "is missing" in refusal(copied)


def test_cards_without_licence_header_or_tag_are_found(copied: Path) -> None:
    card = copied / "README.md"
    text = card.read_text()
    _, header, body = text.split("---\n", 2)
    for change, words in (
        ({"license": None}, "names no licence"),
        ({"license": "cc-by-4.0"}, "the manifest"),
        ({"tags": []}, "`synthetic`"),
        ({"configs": []}, "no config default"),
    ):
        card.write_text(f"---\n{yaml.safe_dump(yaml.safe_load(header) | change)}---\n{body}")
        assert words in refusal(copied)
    card.write_text(body)
    assert "no YAML header" in refusal(copied)
    card.write_text(text + "\nhf_abcdefghijklmnopqrstuvwxyz012345\n")
    said = refusal(copied)
    assert "token or key" in said
    assert "hf_abc" not in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "no token at its end"}, "the target must end"),
        ({"query_image": "/home/someone/picture.jpg"}, "no path below the M-BEIR root"),
        ({"query_image": "../../picture.jpg"}, "no path below the M-BEIR root"),
        ({"query_text": "Bearer abcdefghijklmnopqrstuvwxyz0123"}, "token or key"),
        ({"route": "sideways"}, "route"),
    ],
)
def test_bad_rows_are_found(copied: Path, changes: dict[str, object], words: str) -> None:
    rewritten(copied, **changes)
    assert words in refusal(copied)
