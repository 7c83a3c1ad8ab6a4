"""Two stages: traces and routes first, without candidates; then the joint loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from schemas.errors import ConfigError
from schemas.training import LossSettings, TrainConfig
from tests.trainer.conftest import fresh, source_of
from trainer.data.process_group import ProcessGroup
from trainer.training.step import train_step
from trainer.training.train import _next_stop, _self_traces_due, train

ONE = ProcessGroup(0, 1, torch.device("cpu"))


def staged(config: TrainConfig, steps: int, **traces: object) -> TrainConfig:
    return config.model_copy(update={"traces": config.traces.model_copy(update={"first_stage_steps": steps, **traces})})


@pytest.mark.parametrize("chunk", [4, 64])
def test_the_first_stage_has_the_gradient_of_the_generation_loss(config: TrainConfig, chunk: int) -> None:
    """That of a joint step whose contrastive weight is 0, and the same queries."""
    config = config.model_copy(update={"batch": config.batch.model_copy(update={"micro_batch_size": chunk})})
    found = []
    for steps, weight in ((2, 1.0), (0, 0.0)):
        embedder = fresh(config).train()
        batch = source_of(staged(config, steps), embedder)[1]
        losses = train_step(embedder, batch, LossSettings(temperature=0.05, retrieval_weight=weight), ONE)
        gradients = {name: p.grad for name, p in embedder.named_parameters() if p.grad is not None and "log_scale" not in name}
        found.append((batch, losses, gradients))
    (first, losses, gradients), (joint, usual, wanted) = found
    assert first.ids == joint.ids
    assert (first.dids, first.candidates, losses.retrieval, losses.hit) == ([], [], 0.0, 0.0)
    assert losses.total == pytest.approx(usual.total, rel=1e-5)
    assert gradients.keys() == wanted.keys()
    largest = max(float(value.abs().max()) for value in wanted.values())
    assert all(float((gradients[name] - value).abs().max()) < 2e-5 * largest for name, value in wanted.items())


def test_only_variants_with_traces_have_a_first_stage_and_it_ends(config: TrainConfig) -> None:
    source = source_of(staged(config, 2), fresh(config))
    assert [bool(source.make_batch(step).dids) for step in (0, 1, 2)] == [False, False, True]
    source.variant = "direct"
    assert source.make_batch(0).dids


def test_own_traces_begin_with_the_second_stage(config: TrainConfig) -> None:
    own = staged(config, 5, contrastive="own", refresh=3, first_refresh=2)
    assert [step for step in range(12) if _self_traces_due(own, "trace", step)] == [5, 8, 11]
    assert [_next_stop(own, "trace", step, 100) for step in (0, 4, 5, 7)] == [2, 5, 6, 8]  # checkpoints every 2 steps


@pytest.mark.slow
def test_a_training_of_two_stages_ends_and_one_without_a_second_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    short = config.model_copy(
        update={"out": tmp_path / "run", "optimiser": config.optimiser.model_copy(update={"max_steps": 3})}
    )
    with pytest.raises(ConfigError, match="first_stage_steps is 3, and the training has 3 steps"):
        train(staged(short, 3), "trace")
    assert (train(staged(short, 2), "trace") / "finished.json").is_file()
