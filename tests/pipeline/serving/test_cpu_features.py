"""The processor's feature flags decide the number format."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.serving.cpu_features import cpu_multiplies_bfloat16
from pipeline.serving.vllm_command import arguments
from schemas.hosting import ServerConfig


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("model name\t: something with bf16 in its name\n", False),
    ],
)
def test_bfloat16_is_used_if_the_processor_has_it(tmp_path: Path, text: str, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_multiplies_bfloat16(tmp_path / "cpuinfo") is expected


def test_bfloat16_is_not_used_if_nothing_is_known_of_the_processor(tmp_path: Path) -> None:
    assert not cpu_multiplies_bfloat16(tmp_path / "none")


@pytest.mark.parametrize(
    ("device", "dtype", "has", "expected"),
    [
        ("cpu", "auto", False, "float32"),
        ("cpu", "auto", True, "auto"),
        ("cpu", "bfloat16", False, "bfloat16"),
        ("cuda", "auto", False, "auto"),
    ],
)
def test_a_server_emulates_bfloat16_only_on_request(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: str, has: bool, expected: str
) -> None:
    monkeypatch.setattr("pipeline.serving.vllm_command.cpu_multiplies_bfloat16", lambda: has)
    found = arguments(ServerConfig.model_validate({"model": "m", "device": device, "dtype": dtype}), 1)
    assert found[found.index("--dtype") + 1] == expected
