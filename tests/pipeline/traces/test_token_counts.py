from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from bench.oracle import TOKENIZER
from pipeline.traces import token_counts as tokens
from pipeline.traces.token_counts import load_tokenizer, token_counter, tokenizer_digest
from schemas.config import BuildConfig
from schemas.errors import ConfigError

TEXT = "two red circles left of the large one"


def config(**screen: Any) -> BuildConfig:
    server = {"model": "organisation/name", "revision": "abc"}
    return BuildConfig.model_validate({"mbeir": "/m", "teacher": {"server": server}, "screen": screen})


def test_the_tokenizer_has_the_teachers_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    class Hub:
        @staticmethod
        def from_pretrained(source: str, revision: str = "main") -> Tokenizer:
            asked.append((source, revision))
            return Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))

    monkeypatch.setattr(tokens, "Tokenizer", Hub)
    for one in (config(), config(tokenizer="other/name")):
        assert token_counter(one)(TEXT) > 3
    assert asked == [("organisation/name", "abc"), ("other/name", "main")]
    assert tokenizer_digest(config()) == "organisation/name@abc"
    assert tokenizer_digest(config(tokenizer="other/name")) == "other/name"


def test_older_files_make_the_same_tokenizer(tmp_path: Path) -> None:
    whole = json.loads((TOKENIZER / "tokenizer.json").read_text())
    vocabulary, merges = whole["model"]["vocab"], whole["model"]["merges"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    lines = [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    made = load_tokenizer(str(tmp_path)).encode(TEXT, add_special_tokens=False).ids
    assert made == load_tokenizer(str(TOKENIZER)).encode(TEXT, add_special_tokens=False).ids


def test_a_missing_tokenizer_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)no tokenizer at .*no tokenizer.json.*screen.tokenizer"):
        load_tokenizer(str(tmp_path))
