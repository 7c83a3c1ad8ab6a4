"""Unreachable Ray addresses give a one-line error within seconds. They have their own process, as Ray allows one session."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.serving.ray_session import explained

START = """
import json, os, sys, time
from pipeline.serving.ray_session import start_ray
for address in sys.argv[1:]:
    os.environ["RAY_ADDRESS"] = address
    began, said = time.monotonic(), ""
    try:
        start_ray()
    except Exception as error:
        said = f"{type(error).__name__} {error}"
    print(json.dumps([said, time.monotonic() - began]))
"""


def start(*addresses: str, **environment: str) -> list[tuple[str, float]]:
    """Starts Ray with each address in turn, until one works, in one process. Returns (the error, seconds) for each."""
    ended = subprocess.run(
        [sys.executable, "-c", START, *addresses],
        env={name: value for name, value in os.environ.items() if name != "RAY_TMPDIR"} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    return [(said, seconds) for said, seconds in map(json.loads, ended.stdout.splitlines())]


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


UNREACHABLE = {
    "127.0.0.1:{closed}": "no Ray cluster answers there",
    "no-such-host.invalid:6379": "no Ray cluster answers there",
    "ray://127.0.0.1:10001": "run the command on a node of the cluster",
    "http://127.0.0.1:8265": "ray job submit --address http://127.0.0.1:8265",
    "nonsense": "write HOST:PORT or auto",
}


def test_an_unreachable_address(tmp_path: Path) -> None:
    addresses = [address.format(closed=closed_port()) for address in UNREACHABLE]
    found = start(*addresses, RAY_TMPDIR=str(tmp_path), TMPDIR=str(tmp_path))
    for address, said, (message, seconds) in zip(addresses, UNREACHABLE.values(), found, strict=True):
        assert message.startswith("ConfigError"), address
        assert said in message, address
        assert "RAY_ADDRESS" in message.split("what to do:")[1], address
        assert seconds < 30, address


@pytest.mark.slow
def test_a_temporary_directory_too_long_for_sockets(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    ((message, _),) = start("", TMPDIR=str(deep))
    assert "the path is too long" in message
    assert "RAY_TMPDIR=/tmp" in message
    ((message, _),) = start("", TMPDIR=str(deep), RAY_TMPDIR="/tmp")
    assert message == ""


def test_auto_without_a_running_cluster() -> None:
    """A unit test, because whether `auto` finds a cluster depends on what else runs on the machine."""
    error = explained("auto", ConnectionError("Could not find any running Ray instance."))
    assert "no Ray cluster runs on this machine" in error.problem
    assert "RAY_ADDRESS" in error.remedy
