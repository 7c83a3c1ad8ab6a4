"""Lengths in the teacher's tokens, by its tokenizer alone (no model is loaded)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from pipeline.files.durable import sha256_file
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


def tokenizer_revision(config: BuildConfig) -> str | None:
    """The commit of a Hub repository that the tokenizer is of: the teacher's own, where it is the teacher's."""
    server = config.teacher.server
    return server.revision if server is not None and tokenizer_source(config) == server.model else None


def load_tokenizer(source: str, revision: str | None = None) -> Tokenizer:
    """Of a directory or a Hub repository, by its tokenizer.json, or made from the older files (vocab.json and merges.txt)."""
    path = Path(source)
    try:
        if not path.is_dir():
            return Tokenizer.from_pretrained(source, revision=revision or "main")
        if (path / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # noqa: BLE001 (tokenizers raises bare Exception)
        return _made(source, revision, error)
    return _made(source, revision, FileNotFoundError("it has no tokenizer.json"))


def _made(source: str, revision: str | None, why: Exception) -> Tokenizer:
    """By transformers, which is slow to import, and without code of the repository's own."""
    try:
        from transformers import AutoTokenizer  # noqa: PLC0415

        found: Tokenizer = AutoTokenizer.from_pretrained(source, revision=revision).backend_tokenizer
    except Exception as error:  # noqa: BLE001 (whatever it is, there is no tokenizer)
        raise ConfigError(
            f"no tokenizer at {source!r}{f' at {revision}' if revision else ''} ({why}; {str(error).splitlines()[0][:200]})",
            "set screen.tokenizer to a directory or Hub repository with a tokenizer.json",
        ) from None
    return found


def tokenizer_digest(config: BuildConfig) -> str:
    """Of a tokenizer in a directory, whose place does not matter; of another one its name, and its commit if it is pinned."""
    source, revision = tokenizer_source(config), tokenizer_revision(config)
    file = Path(source) / "tokenizer.json"
    if file.is_file():
        return sha256_file(file)
    return f"{source}@{revision}" if revision else source


def token_counter(config: BuildConfig) -> CountTokens:
    tokenizer = load_tokenizer(tokenizer_source(config), tokenizer_revision(config))

    @lru_cache(maxsize=1024)
    def count(text: str) -> int:
        return len(tokenizer.encode_batch_fast([text], add_special_tokens=False)[0])  # without offsets, which cost a fifth

    return count


CountTokens = Callable[[str], int]
