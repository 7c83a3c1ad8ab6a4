from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.serving.test_vllm_command import VISION, model
from tests.support.hub_repos import HubRepos, Repo, hub_repos

FILES = {
    "config.json": json.dumps(VISION).encode(),
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "preprocessor_config.json": b"{}",
    "pytorch_model.bin": b"the same weights again",
    "original/consolidated.safetensors": b"and again",
}


@pytest.fixture
def hub() -> Iterator[HubRepos]:
    with hub_repos() as server:
        repo = Repo(False, {}, {})
        repo.commit("main", FILES, "first")
        server.repos["model", "org/teacher"] = repo
        yield server


def settings(tmp_path: Path, name: str, **server: object) -> Path:
    path = tmp_path / "config.yaml"
    managed = {"hosting": "managed", "server": {"model": name, "max_model_len": 512, **server}}
    path.write_text(json.dumps({"mbeir": str(tmp_path), "out": str(tmp_path / "out"), "teacher": managed, "verifier": managed}))
    return path


def fetch(
    tmp_path: Path, hub: HubRepos, name: str = "org/teacher", *, offline: bool = False, **server: object
) -> tuple[int, str]:
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, "-m", "mbeir_cot", "teacher", "fetch", str(settings(tmp_path, name, **server))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_model_is_downloaded_once_and_then_works_offline(tmp_path: Path, hub: HubRepos) -> None:
    code, said = fetch(tmp_path, hub)
    assert code == 0, said
    directory = Path(said.split("verifier: ")[1].splitlines()[0])
    assert {path.name for path in directory.rglob("*") if path.is_file()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "preprocessor_config.json",
    }
    hub.requests.clear()
    code, said = fetch(tmp_path, hub, offline=True)
    assert code == 0, said
    assert hub.requests == []


@pytest.mark.slow
def test_a_failed_download_is_an_error_with_a_remedy(tmp_path: Path, hub: HubRepos) -> None:
    for name, offline, server, message in (
        ("org/none", False, {}, "org/none: the Hub has no such model"),
        ("org/teacher", False, {"revision": "v9"}, "org/teacher at v9: there is no such revision"),
        ("org/teacher", True, {}, "org/teacher: not in the cache"),
        ("org/teacher", False, {"max_model_len": 4096}, "max_model_len is 4096, but the model ends at 1024"),
    ):
        code, said = fetch(tmp_path, hub, name, offline=offline, **server)
        assert code != 0
        assert message in said
        assert "what to do" in said
        assert "Traceback" not in said
    hub.fail = lambda method, path: 403
    (tmp_path / "other").mkdir()
    code, said = fetch(tmp_path / "other", hub)
    assert (code != 0, "Traceback" in said) == (True, False), said


@pytest.mark.slow
def test_a_local_directory_is_only_checked(tmp_path: Path, hub: HubRepos) -> None:
    code, said = fetch(tmp_path, hub, model(tmp_path / "m"))
    assert code == 0, said
    assert f"teacher: {tmp_path / 'm'}" in said
    assert hub.requests == []
