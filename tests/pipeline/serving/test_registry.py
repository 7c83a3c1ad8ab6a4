from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.serving.registry import registered, running
from schemas.hosting import Endpoint, ServerConfig
from tests.pipeline.serving.test_server import config, started  # noqa: F401 (fixtures)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MBEIR_COT_CACHE", str(tmp_path / "cache"))


def test_a_healthy_server_of_the_same_settings_is_found(started) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    settings = started.config
    assert running(settings) is None
    with registered(settings, started.endpoint, started.pid):
        assert running(settings) == started.endpoint
        assert running(settings.model_copy(update={"seed": 1})) is None
    assert running(settings) is None


def test_a_server_that_does_not_answer_is_not_used() -> None:
    settings = ServerConfig(model="m")
    with registered(settings, Endpoint(url="http://127.0.0.1:9/v1", model="m"), os.getpid()):
        assert running(settings) is None


def test_a_server_whose_process_is_gone_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    settings = ServerConfig(model="m")
    with registered(settings, Endpoint(url="http://127.0.0.1:9/v1", model="m"), dead.pid):
        assert running(settings) is None
        assert not list((tmp_path / "cache" / "servers").iterdir())
