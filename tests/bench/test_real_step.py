"""The step of the 7B shape runs; here on CPU, with one layer of each tower and narrow ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench import real_step
from bench.rehearse.layouts import write_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NARROW = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 2, "num_key_value_heads": 1}
SHORT = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "out_hidden_size": 256,
    "fullatt_block_indexes": [1],
}


def test_a_step_is_measured(
    real_qwen: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(real_step, "TEXT", real_step.TEXT | NARROW)
    monkeypatch.setattr(real_step, "VISION", real_step.VISION | SHORT)
    monkeypatch.setattr("bench.rehearse.layouts.real_tokenizer", lambda _: real_qwen)
    processor = write_checkpoint("qwen2.5-vl-7b", tmp_path / "layout", heads=1)
    real_step.main([*("--processor", str(processor), "--layers", "1", "--rows", "4"), "--chunk=2", "--steps=1", "--device=cpu"])
    measured = json.loads(capsys.readouterr().out)
    assert measured["rows"] == 4
    assert measured["patches"] == 4 * 24 * 18  # 341 x 256 pixels, rounded to multiples of 28: 336 x 252
    assert measured["tokens"] > 4 * measured["patches"] // 16
    assert measured["step_s"] > 0
