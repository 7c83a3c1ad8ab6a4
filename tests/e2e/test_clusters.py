"""Builds on a Ray cluster that already runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.oracle import Oracle
from tests.pipeline.serving.test_vllm_command import model
from tests.support.builds import start
from tests.support.hub_repos import hub_repos

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SECRET = "sk-thisIsTheKey"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 8, "include_dashboard": False})
    yield found
    found.shutdown()


def test_the_api_key_of_an_endpoint_need_not_be_on_the_nodes(cluster: Any, small_world: Path, tmp_path: Path) -> None:
    with Oracle(tmp_path / "oracle.log") as oracle:
        endpoints = [{"url": oracle.url, "model": "oracle", "api_key_env": "A_KEY_OF_THE_TEST"}]
        config = oracle.config(tmp_path, small_world, workers=1, teacher__endpoints=endpoints)
        process = start("build", config, "--limit", "4", "--quiet", RAY_ADDRESS=cluster.address, A_KEY_OF_THE_TEST=SECRET)
        said = process.communicate(timeout=200)[0]
    assert process.returncode == 0, said
    written = [path for path in Path(cluster.head_node.get_session_dir_path()).rglob("*") if path.is_file()]
    assert [path.name for path in written if SECRET.encode() in path.read_bytes()] == []


def test_a_verifier_that_does_not_fit_beside_the_teacher_is_refused_at_once(
    cluster: Any, small_world: Path, tmp_path: Path
) -> None:
    server = {"model": model(tmp_path / "m"), "max_model_len": 512, "tensor_parallel_size": 8}
    managed = {"hosting": "managed", "server": server, "prompts": "pocket"}
    with Oracle(tmp_path / "oracle.log") as oracle:
        config = oracle.config(tmp_path, small_world, workers=1, teacher=managed, verifier=managed)
    began = time.monotonic()
    process = start("build", config, "--limit", "4", "--quiet", RAY_ADDRESS=cluster.address)
    said = process.communicate(timeout=200)[0]
    assert process.returncode != 0
    assert time.monotonic() - began < 120
    words = " ".join(said.split())
    assert "together more than the cluster has (1 node of 8 GPUs)" in words
    assert "a verifier may also run elsewhere (hosting: external)" in words


def test_the_serving_node_fetches_the_model_and_errors_reach_the_driver(
    cluster: Any, small_world: Path, tmp_path: Path
) -> None:
    managed = {"hosting": "managed", "server": {"model": "org/none", "max_model_len": 512}, "prompts": "pocket"}
    with Oracle(tmp_path / "oracle.log") as oracle, hub_repos() as hub:
        config = oracle.config(tmp_path, small_world, workers=1, teacher=managed)
        shell = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": SECRET}
        process = start("build", config, "--limit", "4", RAY_ADDRESS=cluster.address, **shell)
        said = process.communicate(timeout=200)[0]
        assert process.returncode != 0
        assert f"Bearer {SECRET}" in hub.authorizations
    words = " ".join(said.split())
    assert "starting the teacher: downloading org/none" in words
    assert "error: org/none: the Hub has no such model" in words
    assert SECRET not in words
