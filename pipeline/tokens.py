"""Lengths in the teacher's tokens, by its tokenizer alone (no model is loaded)."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from pipeline.screen import CountTokens
from schemas.config import BuildConfig
from schemas.errors import ConfigError


def tokenizer_source(config: BuildConfig) -> str:
    """Where the tokenizer comes from; ConfigError where the config leaves it open."""
    if config.screen.tokenizer is not None:
        return config.screen.tokenizer
    if config.teacher.server is not None:
        return config.teacher.server.model
    raise ConfigError(
        "screen.tokenizer is not set, and an external teacher does not say which tokenizer is its own",
        "name the directory or the Hub repository of the teacher's model",
    )


def load_tokenizer(source: str) -> Tokenizer:
    path = Path(source)
    try:
        if path.is_dir():
            return Tokenizer.from_file(str(path / "tokenizer.json"))
        return Tokenizer.from_pretrained(source)
    except Exception as error:  # noqa: BLE001 (tokenizers raises bare Exception)
        raise ConfigError(
            f"no tokenizer at {source!r} ({error})",
            "set screen.tokenizer to a directory or Hub repository with a tokenizer.json",
        ) from None


def tokenizer_digest(config: BuildConfig) -> str:
    """Of a tokenizer in a directory, whose place does not matter; of another one its name."""
    source = tokenizer_source(config)
    file = Path(source) / "tokenizer.json"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else source


def token_counter(config: BuildConfig) -> CountTokens:
    tokenizer = load_tokenizer(tokenizer_source(config))

    @lru_cache(maxsize=1024)
    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return count
