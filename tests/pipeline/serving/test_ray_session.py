"""Unreachable Ray addresses give a one-line error within seconds. Each test runs in its own process, as Ray allows one session."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.serving.ray_session import explained

START = "from pipeline.serving.ray_session import start_ray\ntry:\n    start_ray()\nexcept Exception as error:\n    print(type(error).__name__, error)"


def start(**environment: str) -> tuple[str, float]:
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", START],
        env={name: value for name, value in os.environ.items() if name != "RAY_TMPDIR"} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return ended.stdout, time.monotonic() - began


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:{closed}", "no Ray cluster answers there"),
        ("no-such-host.invalid:6379", "no Ray cluster answers there"),
        ("ray://127.0.0.1:10001", "run the command on a node of the cluster"),
        ("http://127.0.0.1:8265", "ray job submit --address http://127.0.0.1:8265"),
        ("nonsense", "write HOST:PORT or auto"),
    ],
)
def test_an_unreachable_address(address: str, said: str, tmp_path: Path) -> None:
    message, seconds = start(RAY_ADDRESS=address.format(closed=closed_port()), RAY_TMPDIR=str(tmp_path), TMPDIR=str(tmp_path))
    assert message.startswith("ConfigError")
    assert said in message
    assert "RAY_ADDRESS" in message.split("what to do:")[1]
    assert seconds < 30  # most of it for importing Ray


@pytest.mark.slow
def test_a_temporary_directory_too_long_for_sockets(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    message, _ = start(RAY_ADDRESS="", TMPDIR=str(deep))
    assert "the path is too long" in message
    assert "RAY_TMPDIR=/tmp" in message
    message, _ = start(RAY_ADDRESS="", TMPDIR=str(deep), RAY_TMPDIR="/tmp")
    assert message == ""


def test_auto_without_a_running_cluster() -> None:
    """A unit test, because whether `auto` finds a cluster depends on what else runs on the machine."""
    error = explained("auto", ConnectionError("Could not find any running Ray instance."))
    assert "no Ray cluster runs on this machine" in error.problem
    assert "RAY_ADDRESS" in error.remedy
