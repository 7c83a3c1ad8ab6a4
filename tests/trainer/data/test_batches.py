"""Batches on their way from the workers to the trainer."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
import torch

from schemas.training import TrainConfig
from tests.trainer.conftest import fresh, source_of
from trainer.data.batches import make_loader, unpack


@pytest.mark.slow
def test_a_batch_of_many_chunks_arrives_unchanged_with_few_open_files(config: TrainConfig) -> None:
    batch = config.batch.model_copy(update={"global_batch_size": 48, "micro_batch_size": 1})
    source = source_of(config.model_copy(update={"batch": batch}), fresh(config))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        arrived = [unpack(made) for made in make_loader(source, 0, 4, 2)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for step, found in enumerate(arrived):
        made = source.make_batch(step)
        assert (found.ids, found.dids, found.positives) == (made.ids, made.dids, made.positives)
        for one, other in zip(found.queries + found.candidates, made.queries + made.candidates, strict=True):
            assert one.names == other.names
            assert one.inputs.keys() == other.inputs.keys()
            assert all(torch.equal(value, other.inputs[name]) for name, value in one.inputs.items())
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.places, other.places)
            assert torch.equal(one.last, other.last)


@pytest.mark.slow
def test_the_limit_on_open_files_is_raised_to_the_systems() -> None:
    script = (
        "import resource; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard));"
        "from trainer.data.batches import allow_open_files; assert allow_open_files() == hard;"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
