from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.serving.environ import carried
from tests.pipeline.serving.test_vllm_command import model

SECRET = "hf_aSecretThatNobodyMayRead"

SHELL = {
    "HF_TOKEN": SECRET,
    "HF_HUB_OFFLINE": "1",
    "NCCL_DEBUG": "WARN",
    "https_proxy": "http://proxy:3128",
    "NO_PROXY": "10.0.0.0/8",
    "VLLM_LOGGING_LEVEL": "DEBUG",
    "VLLM_HOST_IP": "10.1.2.3",
    "MY_KEY": "sk-secret",
    "AWS_SECRET_ACCESS_KEY": "other",
    "PATH": "/bin",
    "CUDA_VISIBLE_DEVICES": "0",
}


def test_an_explicit_list_is_passed_on() -> None:
    assert set(carried((), SHELL)) == {
        "HF_TOKEN",
        "HF_HUB_OFFLINE",
        "NCCL_DEBUG",
        "https_proxy",
        "NO_PROXY",
        "VLLM_LOGGING_LEVEL",
    }
    assert set(carried(("MY_KEY", None), SHELL)) - set(carried((), SHELL)) == {"MY_KEY"}


def test_values_never_appear_in_texts() -> None:
    found = carried(("MY_KEY",), SHELL)
    assert SECRET not in f"{found} {found!r}"
    assert "HF_TOKEN" in repr(found)


DRIVER = """
import json, os, sys
import ray
from pipeline.serving.server_pool import ServerPool
from schemas.hosting import ServerConfig

pool = ServerPool(ServerConfig(model=sys.argv[1], device="cpu", max_model_len=64))
names = sys.argv[2:]
seen = ray.get(pool.actors[0].__ray_call__.remote(lambda actor: {name: os.environ.get(name) for name in names}))
print(json.dumps(seen), flush=True)
pool.actors[0].fetch.remote()
pool.stop()
"""


@pytest.mark.slow
def test_a_running_cluster_gets_the_drivers_settings_and_stores_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    names = [name for name in SHELL if name not in ("PATH", "CUDA_VISIBLE_DEVICES")]
    for name in names:
        monkeypatch.delenv(name, raising=False)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        driver = [sys.executable, "-c", DRIVER, model(tmp_path / "m"), *names]
        shell = os.environ | {name: SHELL[name] for name in names} | {"RAY_ADDRESS": cluster.address}
        said = subprocess.run(driver, env=shell, capture_output=True, text=True, check=True, timeout=120)
        expected = dict(SHELL) | {"VLLM_HOST_IP": None, "MY_KEY": None, "AWS_SECRET_ACCESS_KEY": None}
        assert json.loads(said.stdout.splitlines()[-1]) == {name: expected[name] for name in names}
        assert SECRET not in said.stdout.replace(json.dumps(SECRET), "") + said.stderr
        written = [path for path in Path(cluster.head_node.get_session_dir_path()).rglob("*") if path.is_file()]
        assert written
        assert [path.name for path in written if SECRET.encode() in path.read_bytes()] == []
    finally:
        cluster.shutdown()
