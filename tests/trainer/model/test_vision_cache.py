"""A frozen tower runs once per step, with the same gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pocket.training.train_models import MODELS
from schemas.training import LossSettings, TrainConfig
from tests.trainer.conftest import fresh, source_of
from tests.trainer.model.test_real_layouts import qwen3
from tests.trainer.model.test_vision_attention import GRIDS, qwen25_tower
from tests.trainer.training.test_step import ONE, agree
from trainer.data.batches import Batch
from trainer.data.tower_plan import TowerPlan, vision_tower
from trainer.model.embedder import Embedder
from trainer.model.vision_cache import TowerMemory
from trainer.training.step import StepLosses, train_step


@pytest.fixture(scope="module", params=["Qwen2.5-VL", "Qwen3-VL"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "Qwen2.5-VL":
        return MODELS / "base"
    directory = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    qwen3(directory, tied=False)
    return directory


def stepped(embedder: Embedder, batch: Batch, gib: float) -> tuple[dict[str, torch.Tensor], StepLosses, int]:
    """(gradients, losses, passes through the tower)."""
    calls: list[nn.Module] = []
    hook = vision_tower(embedder.model).blocks[0].register_forward_pre_hook(lambda block, _: calls.append(block))
    embedder.zero_grad()
    torch.manual_seed(5)
    losses = train_step(embedder, batch, LossSettings(temperature=0.05), ONE, vision_cache_gib=gib)
    hook.remove()
    return {name: p.grad.clone() for name, p in embedder.named_parameters() if p.grad is not None}, losses, len(calls)


@pytest.mark.slow
def test_the_tower_runs_once_with_the_same_gradients(config: TrainConfig, base: Path) -> None:
    embedder = fresh(config, base=str(base), train_projector=True, attention="sdpa").train()
    batch = source_of(config, embedder)[1]
    assert not batch.at_once
    shown = sum("pixel_values" in chunk.inputs for chunk in [*batch.queries, *batch.candidates])
    again, losses, twice = stepped(embedder, batch, 0.0)
    kept, same, once = stepped(embedder, batch, 1.0)
    assert (twice, once) == (2 * shown, shown)
    assert any("merger" in name for name in again)
    agree(again, kept, 1e-4)
    assert same == pytest.approx(losses, rel=1e-5)
    some, same, between = stepped(embedder, batch, 1.2 * largest(embedder, batch) / 2**30)  # one chunk fits, but not all
    assert once < between < twice
    agree(again, some, 1e-4)


def largest(embedder: Embedder, batch: Batch) -> int:
    """Bytes of the largest chunk's states."""
    found = []
    for chunk in [*batch.queries, *batch.candidates]:
        with torch.no_grad(), TowerMemory(embedder.model, 2**30).record() as seen:
            embedder(chunk)
        found += [one.bytes for one in seen]
    return max(found)


def test_kept_states_give_the_same_embeddings(config: TrainConfig, base: Path) -> None:
    embedder = fresh(config, base=str(base)).eval()
    for chunk in source_of(config, embedder)[0].candidates:
        with torch.no_grad(), TowerMemory(embedder.model, 2**30).record() as seen:
            expected, _ = embedder(chunk)
        if seen:
            with torch.no_grad():
                found, _ = embedder(chunk, seen=seen[0])
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_trained_tower_runs_twice(config: TrainConfig) -> None:
    embedder = fresh(config).train()
    next(vision_tower(embedder.model).blocks.parameters()).requires_grad_(True)
    batch = source_of(config, embedder)[1]
    shown = sum("pixel_values" in chunk.inputs for chunk in [*batch.queries, *batch.candidates])
    assert stepped(embedder, batch, 1.0)[2] == 2 * shown


def test_the_tower_uses_precomputed_windows_and_positions(config: TrainConfig, base: Path) -> None:
    """Windows and positions from the loader's workers equal the tower's, and the tower does not compute them again."""
    embedder = fresh(config, base=str(base), attention="sdpa").eval()
    chunks = source_of(config, embedder)[1].candidates
    chunk = next(chunk for chunk in chunks if "pixel_values" in chunk.inputs).to(ONE.device)
    pixels, grids = chunk.inputs["pixel_values"], chunk.inputs["image_grid_thw"]
    with torch.no_grad():
        expected = embedder.model.model.get_image_features(pixels, grids, return_dict=True).pooler_output
        told = embedder.encode_images(chunk).pooler_output
        torch.testing.assert_close(torch.cat(told), torch.cat(expected), atol=1e-5, rtol=1e-5)
        chunk.tower["position_ids"] = torch.zeros_like(chunk.tower["position_ids"])
        elsewhere = embedder.encode_images(chunk).pooler_output
    assert not torch.equal(torch.cat(elsewhere), torch.cat(told)), "it went by what it was told"


def test_kept_states_return_to_the_order_of_the_images() -> None:
    """With images of several windows, which the tower processes in the order of windows."""
    model = qwen25_tower()
    pixels = torch.randn(int(GRIDS.prod(1).sum()), 3 * 2 * 14 * 14)
    placed, lengths = TowerPlan.of(model).place(GRIDS)
    told = {f"image_{name}": value for name, value in (placed | lengths).items()}
    with torch.no_grad(), TowerMemory(model.requires_grad_(False), 2**30).record() as seen:
        expected = model.model.get_image_features(pixels, GRIDS, return_dict=True, **told).pooler_output
    with torch.no_grad():
        own = model.model.get_image_features(pixels, GRIDS, return_dict=True).pooler_output
        found = seen[0].merged(model.model.visual, GRIDS, placed["window_index"]).pooler_output
    for one, two, three in zip(found, expected, own, strict=True):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(two, three)
