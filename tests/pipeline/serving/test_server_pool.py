"""Servers on a Ray cluster with simulated GPUs: reserving, refusing and releasing. No server is started."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline.serving.environ import carried
from pipeline.serving.placement import Demand
from pipeline.serving.reserve import release, reserve
from pipeline.serving.server import HostingError
from pipeline.serving.server_pool import ServerActor, ServerPool
from schemas.hosting import ServerConfig
from tests.pipeline.serving.test_vllm_command import model

pytestmark = pytest.mark.slow


@contextmanager
def cluster(*gpus: int) -> Iterator[None]:
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": gpus[0], "include_dashboard": False})
    ray.shutdown()  # the session of another test file in this process
    try:
        for count in gpus[1:]:
            found.add_node(num_cpus=1, num_gpus=count)
        ray.init(found.address, include_dashboard=False, log_to_driver=False, logging_level="WARNING")
        yield
    finally:
        ray.shutdown()
        found.shutdown()


@pytest.fixture(scope="module")
def two_of_six() -> Iterator[None]:
    with cluster(6, 6):
        yield


def sizes(held: list[list[Any]]) -> list[int]:
    return [len(groups) for groups in held]


def test_servers_are_counted_by_node(two_of_six: None) -> None:
    held = reserve([Demand("teacher", 4)], 30)
    try:
        assert sizes(held) == [2]
    finally:
        release(held[0])


def test_teacher_and_verifier_share(two_of_six: None) -> None:
    held = reserve([Demand("teacher", 4), Demand("verifier", 2)], 30)
    try:
        assert sizes(held) == [2, 2]
    finally:
        for groups in held:
            release(groups)


@pytest.mark.parametrize(
    ("demands", "message"),
    [
        ([Demand("teacher", 8)], r"tensor_parallel_size 8 is more than any node has \(2 nodes of 6 GPUs\)"),
        ([Demand("teacher", 4, 3)], r"3 servers of 4 GPUs .*more than the cluster has"),
        ([Demand("teacher", 6, 2), Demand("verifier", 1)], r"together more than the cluster has"),
    ],
)
def test_a_layout_that_cannot_fit_is_refused_at_once(two_of_six: None, demands: list[Demand], message: str) -> None:
    began = time.monotonic()
    with pytest.raises(HostingError, match=message):
        reserve(demands, 300)
    assert time.monotonic() - began < 5


def test_gpus_in_use_are_waited_for_up_to_the_timeout(two_of_six: None, tmp_path: Path) -> None:
    config = ServerConfig(model=model(tmp_path / "m"), max_model_len=64, tensor_parallel_size=4, count=2, placement_timeout_s=2)
    first = ServerPool(config)
    try:
        assert first.count == 2
        assert ray.get([actor.pid.remote() for actor in first.actors], timeout=60) == [None, None]
        with pytest.raises(HostingError, match=r"(?s)not enough free GPUs after 2 s.*free are 2 of 6, 2 of 6.*ray status"):
            ServerPool(config)
    finally:
        first.stop()
    again = ServerPool(config.model_copy(update={"placement_timeout_s": 30}))  # the GPUs are released
    again.stop()


def test_an_actor_whose_server_cannot_be_made_fails_in_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an actor's `__init__`, Ray keeps no exception."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))  # where a server without a named log has it
    actor = ServerActor(ServerConfig(model="m"), None, carried())
    with pytest.raises(FileNotFoundError):
        actor.start()
