"""Lengths of texts in the teacher's tokens, from its tokenizer alone (no model is loaded).

The tokenizers of GPT-2 and Qwen cut a text before every single space, so that its tokens are those of its words. Words recur,
so their lengths are cached, which takes a fifth of the time."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import orjson
from tokenizers import Tokenizer

from pipeline.files.durable import sha256_file
from schemas.config import BuildConfig
from schemas.errors import ConfigError

_WORDS_KEPT: Final = 65_536
_QWEN: Final = {
    "type": "Split",
    "pattern": {
        "Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    },
    "behavior": "Isolated",
    "invert": False,
}
"""How the tokenizers of Qwen2 to Qwen3 cut a text before they merge bytes."""


def tokenizer_source(config: BuildConfig) -> str:
    """Where the tokenizer comes from. Raises ConfigError if the config does not say."""
    if config.screen.tokenizer is not None:
        return config.screen.tokenizer
    if config.teacher.server is not None:
        return config.teacher.server.model
    raise ConfigError(
        "screen.tokenizer is not set, and an external teacher does not say which tokenizer it uses",
        "name the directory or the Hub repository of the teacher's model",
    )


def tokenizer_revision(config: BuildConfig) -> str | None:
    """The tokenizer's commit on the Hub: the teacher's revision, if it is the teacher's tokenizer."""
    server = config.teacher.server
    return server.revision if server is not None and tokenizer_source(config) == server.model else None


def load_tokenizer(source: str, revision: str | None = None) -> Tokenizer:
    """Loads a directory's or Hub repository's tokenizer.json, or converts the older files (vocab.json and merges.txt)."""
    path = Path(source)
    try:
        if not path.is_dir():
            return Tokenizer.from_pretrained(source, revision=revision or "main")
        if (path / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # noqa: BLE001 (tokenizers raises bare Exception)
        return _convert(source, revision, error)
    return _convert(source, revision, FileNotFoundError("it has no tokenizer.json"))


def _convert(source: str, revision: str | None, why: Exception) -> Tokenizer:
    """Converts with transformers, which is slow to import, without running the repository's code."""
    try:
        from transformers import AutoTokenizer  # noqa: PLC0415

        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(source, revision=revision).backend_tokenizer
    except Exception as error:  # noqa: BLE001 (whatever it is, there is no tokenizer)
        raise ConfigError(
            f"no tokenizer at {source!r}{f' at {revision}' if revision else ''} ({why}; {str(error).splitlines()[0][:200]})",
            "set screen.tokenizer to a directory or Hub repository with a tokenizer.json",
        ) from None
    return tokenizer


def tokenizer_digest(config: BuildConfig) -> str:
    """A directory's tokenizer by its content; a Hub repository's by name, and by commit if it is pinned."""
    source, revision = tokenizer_source(config), tokenizer_revision(config)
    file = Path(source) / "tokenizer.json"
    if file.is_file():
        return sha256_file(file)
    return f"{source}@{revision}" if revision else source


def token_counter(config: BuildConfig) -> CountTokens:
    return counter_of(load_tokenizer(tokenizer_source(config), tokenizer_revision(config)))


def counter_of(tokenizer: Tokenizer) -> CountTokens:
    """A function from a text to its number of tokens."""

    @lru_cache(maxsize=1024)
    def whole(text: str) -> int:
        return len(tokenizer.encode_batch_fast([text], add_special_tokens=False)[0])  # without offsets, which cost a fifth

    if not _cuts_before_spaces(tokenizer):
        return whole
    first = lru_cache(maxsize=_WORDS_KEPT)(lambda word: len(tokenizer.encode(word, add_special_tokens=False)))
    others = _SpacedWords(tokenizer)

    def count(text: str) -> int:
        words = text.split(" ")
        if not text.isascii() or words != text.split():  # other white space or two spaces in a row, which may be one token
            return whole(text)
        return first(words[0]) + others.count(words[1:])

    return count


class _SpacedWords:
    """Counts tokens of words after a space. Words that occur twice are cached: many occur only once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lengths: dict[str, int] = {}
        self._once: set[str] = set()

    def count(self, words: list[str]) -> int:
        total, unknown, lengths = 0, [], self._lengths
        for word in words:
            length = lengths.get(word)
            if length is None:
                unknown.append(word)
            else:
                total += length
        return total + self._count_unknown(unknown) if unknown else total

    def _count_unknown(self, words: list[str]) -> int:
        for word in words:
            if word in self._once:
                self._once.discard(word)
                if len(self._lengths) >= _WORDS_KEPT:
                    self._lengths.clear()
                self._lengths[word] = self._tokens(f" {word}")
            elif word not in self._lengths:
                if len(self._once) >= _WORDS_KEPT:
                    self._once.clear()
                self._once.add(word)
        return self._tokens("".join([f" {word}" for word in words]))

    def _tokens(self, text: str) -> int:
        return len(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0])


def _cuts_before_spaces(tokenizer: Tokenizer) -> bool:
    """Whether an ASCII text's tokens never span a single space between two other characters.

    In GPT-2's and Qwen's patterns no alternative continues over a space after another character, none looks behind, and none
    looks ahead except over white space."""
    cutter = tokenizer.pre_tokenizer
    if cutter is None or tokenizer.truncation is not None or tokenizer.padding is not None:
        return False
    if tokenizer.normalizer is not None and _state(tokenizer.normalizer) != {"type": "NFC"}:  # which does not change ASCII
        return False
    if any(
        token.lstrip or token.rstrip or token.single_word or not token.content or " " in token.content
        for token in tokenizer.get_added_tokens_decoder().values()
    ):
        return False
    state = _state(cutter)
    steps = state["pretokenizers"] if state["type"] == "Sequence" else [state]
    if len(steps) == 2 and steps[0] == _QWEN:
        return _is_byte_level(steps[1], use_regex=False)
    return len(steps) == 1 and _is_byte_level(steps[0], use_regex=True)


def _is_byte_level(step: dict[str, Any], *, use_regex: bool) -> bool:
    return step["type"] == "ByteLevel" and step["add_prefix_space"] is False and step["use_regex"] is use_regex


def _state(part: Any) -> Any:
    return orjson.loads(part.__getstate__())


CountTokens = Callable[[str], int]
