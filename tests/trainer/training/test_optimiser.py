"""The learning rate for a batch, and Muon beside AdamW."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from schemas.training import OptimiserSettings, TrainConfig
from tests.trainer.conftest import fresh
from trainer.training import checkpoint
from trainer.training.optimiser import make_optimiser, set_learning_rate


@pytest.mark.parametrize(("scaling", "times"), [("none", 1.0), ("sqrt", 0.5), ("linear", 0.25)])
def test_the_learning_rate_follows_the_batch(config: TrainConfig, scaling: str, times: float) -> None:
    settings = OptimiserSettings.model_validate(
        {"lr": 1e-3, "lr_scaling": scaling, "lr_batch_size": 128, "token_lr_multiplier": 0.2, "warmup_ratio": 0.5}
    )
    optimiser = make_optimiser(fresh(config), settings, 32)
    set_learning_rate(optimiser, settings, 0, 8)  # the first of four warm-up steps
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([times * 1e-3 / 4, times * 1e-3 * 0.2 / 4])
    set_learning_rate(optimiser, settings, 3, 8)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(times * 1e-3)


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz as in Jordan's post (kellerjordan.github.io/posts/muon), in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.double() / matrix.double().norm()
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def test_muon_moves_lora_matrices_and_adamw_the_rest(config: TrainConfig) -> None:
    embedder = fresh(config)
    settings = OptimiserSettings(kind="muon", lr=1e-3, token_lr_multiplier=0.5, warmup_ratio=0.0, schedule="constant")
    optimiser = make_optimiser(embedder, settings, 32)
    set_learning_rate(optimiser, settings, 0, 10)
    before = {name: p.detach().clone() for name, p in embedder.named_parameters() if p.requires_grad}
    torch.manual_seed(1)
    buffers = {name: torch.zeros_like(p) for name, p in before.items()}
    wanted = {name: p.double() for name, p in before.items() if ".lora_" in name}
    for _ in range(2):
        for name, parameter in embedder.named_parameters():
            if parameter.requires_grad:
                gradient = torch.randn_like(parameter)
                parameter.grad = gradient.clone()
                if name in wanted:
                    buffers[name] = 0.95 * buffers[name] + 0.05 * gradient
                    step = orthogonalised(0.05 * gradient + 0.95 * buffers[name])
                    wanted[name] = wanted[name] - 1e-3 * 0.2 * max(parameter.shape) ** 0.5 * step
        optimiser.step()
    after = dict(embedder.named_parameters())
    for name, value in wanted.items():
        moved, right = after[name].detach().double() - before[name], value - before[name]
        assert float((moved - right).norm() / right.norm()) < 0.06, name  # torch multiplies in bfloat16
    rows = next(name for name in before if "trainable_tokens" in name)
    assert (after[rows] - before[rows]).abs().max().item() == pytest.approx(2 * 5e-4, rel=0.1)  # Adam's own step
    assert {tuple(sorted(optimiser.state[p])) for name, p in after.items() if name in wanted} == {("momentum_buffer",)}


def test_a_checkpoint_restores_muons_state(config: TrainConfig, tmp_path: Path) -> None:
    settings = OptimiserSettings(kind="muon", lr=1e-3)

    def step(number: int) -> None:
        torch.manual_seed(number)
        for parameter in embedder.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn_like(parameter)
        set_learning_rate(optimiser, settings, number, 10)
        optimiser.step()

    embedder = fresh(config)
    optimiser = make_optimiser(embedder, settings, 32)
    step(0)
    step(1)
    place = checkpoint.save(tmp_path, 2, embedder, optimiser, 2)
    step(2)
    whole = [p.detach().clone() for p in embedder.parameters() if p.requires_grad]
    embedder = fresh(config)
    optimiser = make_optimiser(embedder, settings, 32)
    checkpoint.restore(place, embedder, optimiser)
    step(2)
    for one, other in zip(whole, [p for p in embedder.parameters() if p.requires_grad], strict=True):
        assert torch.equal(one, other)


def test_torchs_own_state_dict_restores_muons_state_too(config: TrainConfig) -> None:
    settings = OptimiserSettings(kind="muon", lr=1e-3)
    embedder = fresh(config)
    trained = [parameter for parameter in embedder.parameters() if parameter.requires_grad]
    optimiser = make_optimiser(embedder, settings, 32)

    def step(number: int) -> list[torch.Tensor]:
        torch.manual_seed(number)
        for parameter in trained:
            parameter.grad = torch.randn_like(parameter)
        set_learning_rate(optimiser, settings, number, 10)
        optimiser.step()
        return [parameter.detach().clone() for parameter in trained]

    step(0)
    weights, state = step(1), copy.deepcopy(optimiser.state_dict())
    whole = step(2)
    optimiser = make_optimiser(embedder, settings, 32)
    optimiser.load_state_dict(state)
    with torch.no_grad():
        for parameter, value in zip(trained, weights, strict=True):
            parameter.copy_(value)
    for one, other in zip(whole, step(2), strict=True):
        assert torch.equal(one, other)
