"""What is and what is not part of a request key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.ledger.request_key import Identity, fingerprint
from prompts import ImageSlot
from schemas.teacher_config import TeacherConfig


def config(**changes: Any) -> TeacherConfig:
    endpoints = [{"url": "http://a/v1", "model": "m"}]
    return TeacherConfig.model_validate({"hosting": "external", "endpoints": endpoints} | changes)


PROMPT = ("Look: ", ImageSlot("query"), "What changes?")
DIGESTS = {"query": "aa"}
FIELDS = {"temperature": 0.2, "seed": 0}


@pytest.mark.parametrize(
    ("prompt", "digests", "fields", "attempt", "teacher"),
    [
        (("Look: ", ImageSlot("query"), "What changes!"), DIGESTS, FIELDS, 0, {}),
        ((ImageSlot("query"), "Look: ", "What changes?"), DIGESTS, FIELDS, 0, {}),
        (PROMPT, {"query": "ab"}, FIELDS, 0, {}),
        (PROMPT, DIGESTS, FIELDS | {"temperature": 0.3}, 0, {}),
        (PROMPT, DIGESTS, FIELDS | {"structured_outputs": {"grammar": "root ::= x"}}, 0, {}),
        (PROMPT, DIGESTS, FIELDS, 1, {}),
        (PROMPT, DIGESTS, FIELDS, 0, {"endpoints": [{"url": "http://a/v1", "model": "other"}]}),
        (PROMPT, DIGESTS, FIELDS, 0, {"endpoints": [{"url": "http://a/v1", "model": "m", "revision": "r"}]}),
        (PROMPT, DIGESTS, FIELDS, 0, {"max_pixels": 10}),
    ],
    ids=["text", "order", "image", "sampling", "grammar", "attempt", "model", "revision", "pixels"],
)
def test_what_decides_the_answer_changes_the_key(
    prompt: Any, digests: Any, fields: Any, attempt: int, teacher: dict[str, Any]
) -> None:
    usual = fingerprint(Identity(config()), PROMPT, DIGESTS, FIELDS, 0)
    assert fingerprint(Identity(config(**teacher)), prompt, digests, fields, attempt) != usual


@pytest.mark.parametrize(
    "change",
    [
        {"endpoints": [{"url": "http://elsewhere:9/v1", "model": "m", "api_key_env": "KEY"}]},
        {"images": "data_url"},
        {"transport": {"max_in_flight": 3, "deadline_s": 5}},
        {"prompts": "pocket"},
    ],
    ids=["address", "way of images", "transport", "name of the set"],
)
def test_where_and_how_it_is_asked_does_not_change_the_key(change: dict[str, Any]) -> None:
    same = [fingerprint(Identity(config(**c)), PROMPT, DIGESTS, FIELDS, 0) for c in ({}, change)]
    assert same[0] == same[1]


def test_a_local_model_is_identified_by_its_files(tmp_path: Path) -> None:
    def identity(name: str, weights: bytes) -> Identity:
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        (directory / "model.safetensors").write_bytes(weights)
        server = {"model": str(directory), "served_name": "t"}
        return Identity(TeacherConfig.model_validate({"server": server}))

    assert identity("a", b"1" * 100).prefix == identity("b", b"1" * 100).prefix
    assert identity("a", b"1" * 100).prefix != identity("a", b"1" * 99 + b"2").prefix
    big = b"1" * (3 << 20)
    assert identity("a", big).prefix != identity("a", big[:-1] + b"2").prefix
