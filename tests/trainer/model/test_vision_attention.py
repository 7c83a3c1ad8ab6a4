"""The vision tower in few calls equals transformers' window by window."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from trainer.model.vision_attention import batch_windows

GRIDS = torch.tensor([[1, 18, 24], [1, 8, 8], [1, 18, 24], [1, 42, 58]])
"""Images of three sizes, with windows of four sizes."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the queries that reach SDPA."""
    made: list[tuple[int, ...]] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        made.append(tuple(query.shape))
        return real(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    return made


def qwen25_tower() -> Any:
    torch.manual_seed(0)
    vision = {
        "depth": 4,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [3],
    }
    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 1e4}}  # fmt: skip
    return (
        Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval().requires_grad_(True)
    )


def features(tower: Any, pixels: torch.Tensor) -> torch.Tensor:
    found = tower(pixels, grid_thw=GRIDS)
    return found.pooler_output if hasattr(found, "pooler_output") else found[0]


def test_qwen25_vl(calls: list[tuple[int, ...]]) -> None:
    model = qwen25_tower()
    model.set_attn_implementation("sdpa")
    pixels = torch.randn(int(GRIDS.prod(1).sum()), 3 * 2 * 14 * 14)
    expected = features(model.model.visual, pixels)
    expected.square().sum().backward()
    name, parameter = next((n, p) for n, p in model.named_parameters() if n.endswith("blocks.0.attn.qkv.weight"))
    gradient, by_window = parameter.grad.clone(), len(calls)
    model.zero_grad()
    calls.clear()

    assert batch_windows(model)
    found = features(model.model.visual, pixels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.square().sum().backward()
    torch.testing.assert_close(parameter.grad, gradient, atol=1e-4, rtol=1e-4, msg=lambda m: f"{name}: {m}")
    assert len(calls) * 4 < by_window, "windows of one length share a call"


def test_qwen3_vl(calls: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    config = Qwen3VLVisionConfig(depth=3, hidden_size=64, intermediate_size=96, num_heads=2, out_hidden_size=32,
                                 patch_size=16, deepstack_visual_indexes=[1], num_position_embeddings=48 * 48)  # fmt: skip
    tower = Qwen3VLVisionModel._from_config(config, attn_implementation="sdpa").eval()
    pixels = torch.randn(int(GRIDS.prod(1).sum()), 3 * 2 * 16 * 16)
    with torch.no_grad():
        expected, by_picture = features(tower, pixels), len(calls)
        calls.clear()
        assert batch_windows(type("Model", (), {"visual": tower})())
        torch.testing.assert_close(features(tower, pixels), expected, atol=1e-5, rtol=1e-5)
    assert len(calls) < by_picture


def test_a_model_without_a_vision_tower() -> None:
    assert not batch_windows(torch.nn.Linear(2, 2))
