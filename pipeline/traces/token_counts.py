"""Lengths of texts in the teacher's tokens, from its tokenizer alone (no model is loaded).

The tokenizers of GPT-2 and Qwen cut a text before every single space, so that its tokens are those of its words. Words recur,
so their lengths are cached. A new word is cut as the tokenizer would cut it, and most of its pieces are known, so numbers and
names that occur only once cost no call of the tokenizer either.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import orjson
from tokenizers import Tokenizer

from pipeline.files.durable import sha256_file
from schemas.config import BuildConfig
from schemas.errors import ConfigError
from schemas.os_errors import refused_by_system

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
_QWEN_PIECES: Final = re.compile(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+| ", re.ASCII)
_GPT_2_PIECES: Final = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+", re.ASCII)
"""The same for an ASCII word, alone or after one space."""
_GPT_2_DIGITS: Final = re.compile(_GPT_2_PIECES.pattern.replace("[0-9]+", "[0-9]"), re.ASCII)
"""For a vocabulary in which no token has two digits: then nothing is merged across digits, and each may be counted alone."""
_TWO_DIGITS: Final = re.compile(r"[0-9].*[0-9]", re.ASCII | re.DOTALL)


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
        if os.path.lexists(path / "tokenizer.json"):  # also a link that cannot be followed, to say so
            return Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # noqa: BLE001 (tokenizers raises bare Exception)
        return _convert(source, revision, error)
    return _convert(source, revision, FileNotFoundError("it has no tokenizer.json"))


def _convert(source: str, revision: str | None, why: Exception) -> Tokenizer:
    """Converts with transformers, which is slow to import, without running the repository's code.

    why: what the file raised. Raises ConfigError if there is no tokenizer, or it cannot be had."""
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415 (reads HF_* when imported)

    what = f"{source!r}{f' at {revision}' if revision else ''}"
    out_of_reach = isinstance(why, LocalEntryNotFoundError)
    if not out_of_reach and (refused := refused_by_system(why)) is not None:
        raise ConfigError(f"the tokenizer of {what} cannot be read: {refused.cause}", f"{refused.remedy}; then run again")
    try:
        from transformers import AutoTokenizer  # noqa: PLC0415

        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(source, revision=revision).backend_tokenizer
    except Exception as error:  # noqa: BLE001 (whatever it is, there is no tokenizer)
        if out_of_reach:
            raise ConfigError(
                f"the tokenizer of {what} is not in the cache, and the Hub is offline or cannot be reached",
                "unset HF_HUB_OFFLINE and check the network (https_proxy, HF_ENDPOINT); or set screen.tokenizer to a directory "
                "with a tokenizer.json",
            ) from None
        if (refused := refused_by_system(error)) is not None:
            raise ConfigError(
                f"the tokenizer of {what} cannot be read: {refused.cause}", f"{refused.remedy}; then run again"
            ) from None
        if (file := Path(source) / "tokenizer.json").is_file():
            raise ConfigError(
                f"{file} cannot be read as a tokenizer: {why}",
                "download it again: it is cut off, damaged, or of a newer version of `tokenizers`",
            ) from None
        lines = str(error).splitlines() or [type(error).__name__]
        raise ConfigError(
            f"no tokenizer at {what} ({why}; {lines[0][:200]})",
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

    pieces = _pieces(tokenizer)
    if pieces is None:
        return whole
    first, others = _Words(tokenizer, pieces, ""), _Words(tokenizer, pieces, " ")

    def count(text: str) -> int:
        if not _is_plain(text):
            return whole(text)
        words = text.split(" ")
        return first.count(words[:1]) + others.count(words[1:])

    return count


def _is_plain(text: str) -> bool:
    """ASCII words with one space between: no other white space and no two spaces in a row, which may be one token."""
    return text.isascii() and text.isprintable() and "  " not in text and text[:1] != " " and text[-1:] not in ("", " ")


class _Words(dict[str, int]):
    """Tokens of ASCII words after `before` (a space or nothing); each is counted when it is first asked for."""

    def __init__(self, tokenizer: Tokenizer, pieces: re.Pattern[str], before: str) -> None:
        super().__init__()
        self._tokenizer, self._cut, self._before = tokenizer, pieces, before
        added = "|".join(re.escape(token.content) for token in tokenizer.get_added_tokens_decoder().values())
        self._added = re.compile(added or r"(?!)")
        self._pieces: dict[str, int] = {}

    def count(self, words: list[str]) -> int:
        return sum(map(self.__getitem__, words))

    def __missing__(self, word: str) -> int:
        if len(self) >= _WORDS_KEPT:
            self.clear()
        length = self[word] = self._length(word)
        return length

    def _length(self, word: str) -> int:
        if self._added.search(word):  # these are found before a text is cut
            return self._tokens(self._before + word)
        total = 0
        for piece in self._cut.findall(self._before + word):
            length = self._pieces.get(piece)
            if length is None:
                if len(self._pieces) >= _WORDS_KEPT:
                    self._pieces.clear()
                length = self._pieces[piece] = self._tokens(piece)
            total += length
        return total

    def _tokens(self, text: str) -> int:
        return len(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0])


def _pieces(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """How the tokenizer cuts ASCII words, if an ASCII text's tokens never lie across a single space between two other
    characters, and begin anew there; None otherwise.

    In GPT-2's and Qwen's patterns no alternative continues over a space after another character, none looks behind, and none
    looks ahead except over white space."""
    cutter = tokenizer.pre_tokenizer
    if cutter is None or tokenizer.truncation is not None or tokenizer.padding is not None:
        return None
    if tokenizer.normalizer is not None and _state(tokenizer.normalizer) != {"type": "NFC"}:  # which does not change ASCII
        return None
    if any(
        token.lstrip or token.rstrip or token.single_word or not token.content or " " in token.content
        for token in tokenizer.get_added_tokens_decoder().values()
    ):
        return None
    state = _state(cutter)
    steps = state["pretokenizers"] if state["type"] == "Sequence" else [state]
    if len(steps) == 2 and steps[0] == _QWEN and _is_byte_level(steps[1], use_regex=False):
        return _QWEN_PIECES
    if len(steps) == 1 and _is_byte_level(steps[0], use_regex=True):
        return _GPT_2_PIECES if any(map(_TWO_DIGITS.search, tokenizer.get_vocab())) else _GPT_2_DIGITS
    return None


def _is_byte_level(step: dict[str, Any], *, use_regex: bool) -> bool:
    return step["type"] == "ByteLevel" and step["add_prefix_space"] is False and step["use_regex"] is use_regex


def _state(part: Any) -> Any:
    return orjson.loads(part.__getstate__())


CountTokens = Callable[[str], int]
