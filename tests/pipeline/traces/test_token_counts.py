from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bench.oracle import TOKENIZER
from pipeline.traces import token_counts as tokens
from pipeline.traces.token_counts import counter_of, load_tokenizer, token_counter, tokenizer_digest
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


def test_a_damaged_tokenizer_is_not_called_absent(tmp_path: Path) -> None:
    whole = (TOKENIZER / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be read as a tokenizer") as caught:
        load_tokenizer(str(tmp_path))
    assert "download it again" in caught.value.remedy


def test_a_hub_out_of_reach_is_not_a_missing_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable:
        @staticmethod
        def from_pretrained(source: str, revision: str = "main") -> Tokenizer:
            raise LocalEntryNotFoundError("cannot find the requested files in the local cache")

    monkeypatch.setattr(tokens, "Tokenizer", Unreachable)
    monkeypatch.setattr("transformers.AutoTokenizer", Unreachable)
    with pytest.raises(ConfigError, match=r"org/name' is not in the cache, and the Hub is offline") as caught:
        load_tokenizer("org/name")
    assert "HF_HUB_OFFLINE" in caught.value.remedy
    assert "screen.tokenizer" in caught.value.remedy


def like_qwen() -> Tokenizer:
    """The pocket vocabulary with Qwen's own pre-tokenizer, which splits runs of digits and spaces differently from GPT-2's."""
    whole = json.loads((TOKENIZER / "tokenizer.json").read_text())
    whole["normalizer"] = {"type": "NFC"}
    level = whole["pre_tokenizer"] | {"use_regex": False}
    whole["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [tokens._QWEN, level]}
    return Tokenizer.from_str(json.dumps(whole))


COUNTED = {"gpt-2": load_tokenizer(str(TOKENIZER)), "qwen": like_qwen()}
WORDS = [
    "a",
    "the",
    "dog's",
    "7026f2",
    "12",
    "'s",
    "(it",
    ".",
    "--",
    "red,",
    "<|im_end|>",
    "it's",
    "é",
    "e\u0301",
    "",
    "\t",
    "x\n",
]


@pytest.mark.parametrize("name", COUNTED)
@given(text=st.one_of(st.text(max_size=40), st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)))
def test_tokens_counted_by_words_equal_those_of_the_text(name: str, text: str) -> None:
    tokenizer = COUNTED[name]
    assert counter_of(tokenizer)(text) == len(tokenizer.encode(text, add_special_tokens=False))


def test_a_text_of_known_words_is_not_tokenized_again() -> None:
    asked: list[str] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(COUNTED["qwen"], name)

        def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
            asked.extend(texts)
            return COUNTED["qwen"].encode_batch_fast(texts, **options)

    count = counter_of(Watched())  # type: ignore[arg-type]
    for _ in range(2):
        count(TEXT)
    asked.clear()
    assert count(TEXT) == len(COUNTED["qwen"].encode(TEXT, add_special_tokens=False))
    count("two large circles")
    assert asked == []
