"""The rebuilt Qwen2.5 vocabulary has the published ids."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import bench.real_vocabulary as real
from schemas.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).parents[2]


def test_its_ids_are_the_published_ones(real_qwen: PreTrainedTokenizerFast) -> None:
    assert len(real_qwen) == 151_665
    assert real_qwen.convert_tokens_to_ids("<|image_pad|>") == 151_655
    assert real_qwen.convert_tokens_to_ids("</tool_call>") == 151_658
    assert (real_qwen.eos_token_id, real_qwen.pad_token_id) == (151_645, 151_643)
    assert real_qwen("Hello, world!").input_ids == [9707, 11, 1879, 0]
    for word in ("complex", "simple", "yes", "no"):
        assert len(real_qwen.encode(word, add_special_tokens=False)) == 1
    said = "naïve 东京 12 tabs\t and  blanks\n\n<reasoning>"
    assert real_qwen.decode(real_qwen.encode(said)) == said


def test_the_chat_template_keeps_the_place_of_an_image(real_qwen: PreTrainedTokenizerFast) -> None:
    content = [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": "What?"}]
    said = real_qwen.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    assert said == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nLook: <|vision_start|><|image_pad|><|vision_end|>What?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_lock_pins_the_required_version() -> None:
    assert f"\n{real.PACKAGE}=={real.VERSION}\n" in (ROOT / "requirements-cpu.lock").read_text()


def test_an_unavailable_vocabulary_is_an_error_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "_installed", lambda: None)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"no real Qwen vocabulary(?s:.*)pip download --no-deps dashscope==.* --dest .*/wheel"):
        real.real_tokenizer(tmp_path)
    (tmp_path / "wheel" / "dashscope-9-py3-none-any.whl").write_bytes(b"torn")
    with pytest.raises(InputError, match="remove it and run this again"):
        real.real_tokenizer(tmp_path)
