from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.files.redaction import Places
from pipeline.files.secrets import holds_secret

PLACES = Places(["/workspace/M-BEIR", "/fsx/out", "relative", "/"], ["teacher-node-7", "localhost"])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("confidence 0.412, more than 0.5 is wanted", None),
        ("outside the tags: 'either/or 3/4 </answer>'", None),
        ("neither label is among the likeliest tokens ('/' 0.3, …)", None),
        ("no such file: /workspace/M-BEIR/mbeir_images/cirr_images/a.jpg", "no such file: …/a.jpg"),
        ("media path is /fsx/out, not /cluster/home/jdoe/x.jpg", "media path is …, not …/x.jpg"),
        ("cannot open '/Volumes/Data/M BEIR'", "cannot open '…/M BEIR'"),
        ("file:///workspace/M-BEIR/x.jpg is no image", "file://… is no image"),
        ("POST http://teacher-node-7:8000/v1/chat failed", "POST http://… failed"),
        ("teacher-node-7:8000 refused; 10.1.2.3:8000 and localhost:8000 too", "… refused; … and … too"),
        ("~/models/qwen has no config", "…/qwen has no config"),
    ],
)
def test_details_lose_local_paths_and_nothing_else(text: str, wanted: str | None) -> None:
    assert PLACES.scrubbed(text) == (wanted if wanted is not None else text)
    assert PLACES.scrubbed(PLACES.scrubbed(text)) == PLACES.scrubbed(text)


def test_a_local_path_is_below_a_root_or_exists(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    here = Places(["/workspace/M-BEIR"])
    for text, wanted in (
        ("in /workspace/M-BEIR/a/b.jpg", "/workspace/M-BEIR/a/b.jpg"),
        (f"in {tmp_path}/cluster/none.jpg", f"{tmp_path}/cluster/none.jpg"),
        ("a query about /home/user and /workspace/M-BEIR2", ""),
        ("/usr/bin/env is everywhere", ""),
        ("see https://example.org/workspace/M-BEIR", ""),
        ("at 10.0.0.8:8000", "10.0.0.8:8000"),
        ("version 2.13.0.1 of it", "2.13.0.1"),
    ):
        assert here.find(text) == wanted, text


@pytest.mark.parametrize(
    "text",
    [
        "hf_abcdefghijklmnopqrstuvwxyz012345",
        "sk-proj-T3BlbkFJ9xKq2Lm8Zr4Vw7Yb1Nc5-Td6Gf_h0",
        "sk-3f2a9c1b7e6d5048a1b2c3d4e5f60718",
        "key AKIA2E0A8F3B244C9986 is",
        "Authorization: Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.x",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7",
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    ],
)
def test_tokens_are_recognised_by_their_shape(text: str) -> None:
    assert holds_secret(text)


@pytest.mark.parametrize(
    "text",
    [
        "the sk-hynix-platinum-p41-2tb-solid-state-drive beside the SK-Hynix-Gold-P31-1TB-PCIe-NVMe",
        "sk-learn-contributors-meeting-2024-in-paris",
        "Bearer of the ring in the parade of 1924",
        "hf_transfer_is_a_library_for_fast_downloads_2024",
        "-----BEGIN PRIVATE KEY----- is how such a file begins",
        "sk-aaaaaaaaaaaaaaaaaaaaaaaaaaaa1111",
    ],
)
def test_words_are_not_taken_for_tokens(text: str) -> None:
    assert not holds_secret(text)
