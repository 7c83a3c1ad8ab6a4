"""The table of docs/at-scale.md is the output of bench.cost, which uses the real models' shapes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import cost
from trainer.training.cost import PUBLISHED_PATCHES, PUBLISHED_ROWS, PUBLISHED_TOKENS

ROOT = Path(__file__).parents[2]


def test_the_docs_contain_the_table() -> None:
    assert cost.table(cost.CARDS["h100"]) in (ROOT / "docs" / "at-scale.md").read_text(), (
        "put the output of `python -m bench.cost` into docs/at-scale.md, section 'What the paper's scale costs'"
    )


@pytest.mark.slow
@pytest.mark.parametrize("shape", [cost.QWEN_7B, cost.QWEN_72B])
def test_a_shape_has_the_parameters_of_the_model(shape: cost.Shape) -> None:
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
    }
    vision = {
        "depth": shape.vision_layers,
        "hidden_size": shape.vision_hidden,
        "intermediate_size": shape.vision_intermediate,
        "out_hidden_size": shape.hidden,
    }
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(shape.parameters, rel=1e-3)
    layers = model.model.language_model.layers
    linears = [m for m in layers.modules() if isinstance(m, torch.nn.Linear)]
    assert sum(m.weight.numel() for m in linears) == shape.layer_parameters
    assert shape.lora_parameters(8) == sum(8 * (m.in_features + m.out_features) for m in linears)


def test_the_estimate_of_a_step_is_near_the_measurement() -> None:
    """Rows with images on one H200: tokens/s with and without checkpointing."""
    data = cost.Data(query_images=1.0, positive_images=1.0)
    with_, without = (
        cost.step_s(cost.QWEN_7B, cost.CARDS["h200"], 256, traces=True, data=data, checkpointing=checkpointing)
        for checkpointing in (True, False)
    )
    tokens = 256 * cost.train_tokens(data, traces=True)
    assert tokens / with_ == pytest.approx(4532, rel=0.1)
    assert tokens / without == pytest.approx(6186, rel=0.1)


def test_the_estimate_of_memory_is_near_the_measurement() -> None:
    for chunk, checkpointing, gib in ((32, True, 32.5), (16, False, 65.3)):
        assert cost.memory_of(cost.QWEN_7B, chunk=chunk, checkpointing=checkpointing) / 2**30 == pytest.approx(gib, rel=0.06)


def test_a_dry_run_without_data_uses_the_same_figures() -> None:
    for variant, traces in (("trace", True), ("direct", False)):
        assert pytest.approx(cost.train_tokens(traces=traces), rel=0.01) == PUBLISHED_TOKENS[variant]
    assert pytest.approx(cost.train_patches(), rel=0.01) == PUBLISHED_PATCHES
    assert cost.DATA.train_rows == PUBLISHED_ROWS


def test_more_rows_decode_faster_and_a_copied_cache_slower() -> None:
    step = {
        (rows, passes): cost.decode_s(cost.QWEN_7B, cost.CARDS["h100"], rows=rows, context=300, kv_passes=passes)
        for rows in (1, 256)
        for passes in (1, 17)
    }
    assert step[1, 1] < step[256, 1] < step[256, 17]
    assert 256 / step[256, 1] > 50 * 1 / step[1, 1]


def test_a_measurement_replaces_the_assumption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "MEASURED", cost.Measured(embed_share=None))
    before = cost.table(cost.CARDS["h100"])
    assert "useful FLOP at 18.5% of the peak, measured on one H200" in before
    assert "vectors 40 GB on disk; estimated at 40% of the peak, assumed" in before
    monkeypatch.setattr(cost, "MEASURED", cost.Measured(on="H100", train_share={True: 0.2, False: 0.3}, decode_7b=1000.0))
    after = cost.table(cost.CARDS["h100"])
    assert "useful FLOP at 30.0% of the peak, measured on one H100" in after
    assert "256 sequences a GPU, measured on one H100" in after
    assert "vectors 40 GB on disk; estimated at 27% of the peak" in after
