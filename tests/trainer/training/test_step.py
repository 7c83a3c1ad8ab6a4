"""The gradients of a step do not depend on chunks or the number of processes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file, save_file

from schemas.training import LossSettings, TrainConfig
from tests.trainer.conftest import fresh, source_of
from trainer.data.process_group import ProcessGroup
from trainer.training.step import DivergedError, StepLosses, train_step

ONE = ProcessGroup(0, 1, torch.device("cpu"))


def gradients(
    config: TrainConfig, batch: dict[str, int], *, own: bool = False, **model: object
) -> tuple[dict[str, torch.Tensor], StepLosses]:
    changed = config.model_copy(
        update={
            "batch": config.batch.model_copy(update=batch),
            "traces": config.traces.model_copy(update={"contrastive": "own" if own else "teacher"}),
            "data": config.data.model_copy(update={"hard_negatives": 1}),
        }
    )
    embedder = fresh(changed, **model).train()
    source = source_of(changed, embedder)
    if own:
        source.own = dict.fromkeys(source.traces, "Answer: something of its own")
    torch.manual_seed(5)
    losses = train_step(
        embedder, source.make_batch(1), LossSettings(temperature=0.05, bidirectional=True, route_weight=0.5), ONE
    )
    return {name: p.grad for name, p in embedder.named_parameters() if p.grad is not None}, losses


def agree(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    largest = max(float(value.abs().max()) for value in one.values())
    for name, value in one.items():
        assert float((value - other[name]).abs().max()) <= tolerance * largest, name


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_chunked_gradients_equal_those_of_the_whole_batch(config: TrainConfig, own: bool) -> None:
    whole, losses = gradients(config, {"micro_batch_size": 64}, own=own)
    assert {"log_scale"} < whole.keys()
    assert any("lora_A" in name for name in whole)
    assert any("token_adapter" in name or "trainable_tokens" in name for name in whole)
    for chunk in (
        {"micro_batch_size": 3},
        {"micro_batch_size": 4, "micro_batch_patches": 64},
        {"micro_batch_size": 64, "forward_batch_size": 2},
    ):
        found, chunked = gradients(config, chunk, own=own)
        agree(whole, found, 2e-4)
        assert chunked == pytest.approx(losses, rel=1e-4)


@pytest.mark.slow
def test_the_second_pass_uses_the_random_numbers_of_the_first(config: TrainConfig) -> None:
    """With dropout, the gradients agree only if every chunk is repeated exactly."""
    lora = config.model.lora.model_copy(update={"dropout": 0.3})
    kept, _ = gradients(config, {"micro_batch_size": 64, "forward_batch_size": 3}, lora=lora)
    again, _ = gradients(config, {"micro_batch_size": 3}, lora=lora)
    agree(kept, again, 2e-4)
    without, _ = gradients(config, {"micro_batch_size": 3})
    with pytest.raises(AssertionError):
        agree(kept, without, 2e-4)


@pytest.mark.slow
def test_the_gradient_matches_finite_differences(config: TrainConfig) -> None:
    """Of the reported loss, along the gradient."""
    found, _ = gradients(config, {"micro_batch_size": 3})
    embedder = fresh(config).train()
    changed = config.model_copy(update={"data": config.data.model_copy(update={"hard_negatives": 1})})
    batch = source_of(changed, embedder)[1]
    length = sum(float((value**2).sum()) for value in found.values()) ** 0.5
    totals = []
    for sign in (1, -1):
        moved = fresh(config).train()
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                if name in found:
                    parameter += sign * 3e-3 * found[name] / length
        totals.append(train_step(moved, batch, LossSettings(temperature=0.05, bidirectional=True, route_weight=0.5), ONE).total)
    assert (totals[0] - totals[1]) / 6e-3 == pytest.approx(length, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("retrieval", "generation"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_weight_of_zero_switches_a_loss_off(config: TrainConfig, retrieval: float, generation: float) -> None:
    embedder = fresh(config).train()
    losses = train_step(
        embedder, source_of(config, embedder)[0], LossSettings(retrieval_weight=retrieval, generation_weight=generation), ONE
    )
    assert losses.total == pytest.approx(losses.retrieval if retrieval else losses.generation)
    scale = embedder.log_scale.grad
    assert (scale is None or float(scale) == 0.0) == (retrieval == 0)


def test_a_loss_that_is_not_finite_names_its_rows(config: TrainConfig) -> None:
    embedder = fresh(config).train()
    batch = source_of(config, embedder)[0]
    with torch.no_grad():
        next(p for name, p in embedder.named_parameters() if "lora_B" in name).fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"step 0: .* not finite .*train/"):
        train_step(embedder, batch, LossSettings(), ONE)


def _share(rank: int, port: int, config: TrainConfig, out: Path) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "LOCAL_RANK": str(rank),
    }
    torch.set_num_threads(1)
    world = ProcessGroup.join("cpu")
    embedder = fresh(config).train()
    losses = train_step(
        embedder, source_of(config, embedder, rank=rank, world_size=2)[0], LossSettings(temperature=0.05), world
    )
    found = {name: p.grad for name, p in embedder.named_parameters() if p.grad is not None}
    save_file(found | {"losses": torch.tensor(losses)}, out / f"{rank}.safetensors")
    world.leave()


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(config: TrainConfig, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_share, (port, config, tmp_path), nprocs=2)
    embedder = fresh(config).train()
    alone = train_step(embedder, source_of(config, embedder)[0], LossSettings(temperature=0.05), ONE)
    one = {name: p.grad for name, p in embedder.named_parameters() if p.grad is not None}
    for rank in (0, 1):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert found.pop("losses").tolist() == pytest.approx(list(alone), rel=1e-4)
        agree(one, found, 2e-4)
