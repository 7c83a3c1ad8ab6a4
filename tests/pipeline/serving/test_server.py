"""Start, failure and stop of a server process, with a small fake of vLLM for controlled failures."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.serving import server as server_module
from pipeline.serving.server import HostingError, ManagedServer
from schemas.hosting import ServerConfig
from tests.pipeline.serving.test_vllm_command import model

ROOT = Path(__file__).parents[3]

STAND_IN = """
import http.server, os, subprocess, sys, threading, time
arguments = sys.argv[2:]
port = int(arguments[arguments.index("--port") + 1])
mode = os.environ.get("STAND_IN", "")
print("loading", flush=True)
if mode == "crash":
    print("ValueError: CUDA out of memory. Tried to allocate", flush=True)
    sys.exit(3)
if mode == "strange":
    print("Traceback\\nRuntimeError: the moon is full", flush=True)
    sys.exit(3)
if mode == "elsewhere":
    print("INFO:     Application startup complete.", flush=True)
if mode in ("hang", "elsewhere"):
    time.sleep(600)
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
sys.path.insert(0, os.environ["ROOT"])
from pipeline.serving.supervise import watch_parent
watch_parent(int(sys.argv[1]))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *a): pass
http.server.HTTPServer.allow_reuse_address = True
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerConfig:
    """The real supervisor runs; the server below it is the fake, which is first on its path."""
    package = tmp_path / "site" / "pipeline"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "stand_in.py").write_text(textwrap.dedent(STAND_IN))
    supervise = (ROOT / "pipeline/serving/supervise.py").read_text()
    assert '"pipeline.serving.vllm_server_main"' in supervise
    (tmp_path / "site" / "supervise_stand_in.py").write_text(supervise.replace("pipeline.serving.vllm_server_main", "stand_in"))
    assert not package.exists()
    real = server_module.command

    def command(settings: ServerConfig, port: int, parent: int) -> list[str]:
        return [part.replace("pipeline.serving.supervise", "supervise_stand_in") for part in real(settings, port, parent)]

    monkeypatch.setattr(server_module, "command", command)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{ROOT}")
    monkeypatch.setenv("ROOT", str(ROOT))
    monkeypatch.setattr(server_module, "_BACKOFF_SECONDS", (0.05,))
    return ServerConfig(model=model(tmp_path / "m"), max_model_len=64, device="cpu", startup_timeout_s=20, restarts=2)


def tree(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def gone(processes: list[psutil.Process], within: float) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=within)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def started(config: ServerConfig, tmp_path: Path) -> Iterator[ManagedServer]:
    server = ManagedServer(config, log=tmp_path / "server.log")
    server.start()
    yield server
    server.stop()


def test_it_starts_answers_and_leaves_no_process(started: ManagedServer) -> None:
    assert started.healthy()
    assert started.endpoint.model == "teacher"
    assert started.pid is not None
    processes = tree(started.pid)
    assert len(processes) == 3  # supervisor, server, its engine
    started.stop()
    assert gone(processes, 10)
    assert not started.healthy()
    started.stop()  # a second time


@pytest.mark.slow
def test_a_server_that_dies_is_restarted_on_its_port(started: ManagedServer) -> None:
    url = started.endpoint.url
    for round_number in (1, 2):
        assert started.pid is not None
        old = tree(started.pid)
        old[1].kill()  # the server, below its supervisor
        deadline = time.monotonic() + 15
        while not (started.restarts == round_number and started.healthy()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert gone(old, 5)
        assert started.endpoint.url == url
    assert started.pid is not None
    tree(started.pid)[1].kill()
    deadline = time.monotonic() + 10
    while started.failure is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "died again after 2 restarts" in str(started.failure)


@pytest.mark.slow
def test_an_unresponsive_server_is_restarted(config: ServerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_LOOK_SECONDS", 0.1)
    settings = config.model_copy(update={"unresponsive_timeout_s": 1.0, "startup_timeout_s": 10.0, "restarts": 1})
    with ManagedServer(settings, log=tmp_path / "server.log") as server:
        assert server.pid is not None
        old = tree(server.pid)
        old[1].suspend()
        deadline = time.monotonic() + 30
        while not (server.restarts == 1 and server.healthy()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert gone(old, 5)
        monkeypatch.setenv("STAND_IN", "hang")
        server.config = settings.model_copy(update={"restarts": 2, "startup_timeout_s": 1.0})
        tree(server.pid)[1].kill()  # the next one never answers
        while server.failure is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "was silent for 1 s again after 2 restarts" in str(server.failure)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        (
            "crash",
            r"ended while it started: the GPU has too little memory\n(?s:.*)Tried to allocate(?s:.*)raise tensor_parallel_size",
        ),
        ("strange", r"ended while it started: RuntimeError: the moon is full"),
    ],
)
def test_a_server_that_fails_reports_its_cause_first(
    config: ServerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, message: str
) -> None:
    monkeypatch.setenv("STAND_IN", mode)
    with pytest.raises(HostingError, match=message):
        ManagedServer(config, log=tmp_path / "server.log").start()


@pytest.mark.slow
def test_a_server_that_hangs_is_killed(config: ServerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN", "hang")
    server = ManagedServer(config.model_copy(update={"startup_timeout_s": 1.5}), log=tmp_path / "server.log")
    seen: list[tuple[float, str]] = []
    with pytest.raises(HostingError, match="was not ready after 2 s"):
        server.start(lambda seconds, line: seen.append((seconds, line)))
    assert seen[-1][1] == "loading"
    assert server.pid is None


def test_a_server_that_cannot_be_reached_is_reported(
    config: ServerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "elsewhere")
    monkeypatch.setattr(server_module, "_SERVES_SECONDS", 0.5)
    with pytest.raises(HostingError, match=r"says that it serves, but 127.0.0.1:\d+ cannot be reached: .*refused"):
        ManagedServer(config, log=tmp_path / "server.log").start()


@pytest.mark.slow
def test_an_earlier_servers_log_is_ignored(config: ServerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN", "hang")
    monkeypatch.setattr(server_module, "_SERVES_SECONDS", 0.1)
    (tmp_path / "server.log").write_text("INFO:     Application startup complete.\n")
    with pytest.raises(HostingError, match="was not ready after 2 s"):
        ManagedServer(config.model_copy(update={"startup_timeout_s": 1.5}), log=tmp_path / "server.log").start()


def test_a_port_in_use_is_an_immediate_error(config: ServerConfig, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(HostingError, match=f"port {port} is taken"):
            ManagedServer(config.model_copy(update={"port": port}), log=tmp_path / "server.log").start()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["parent", "supervisor"])
def test_no_process_outlives_a_kill(config: ServerConfig, tmp_path: Path, victim: str) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\nimport pipeline.serving.server as s\nfrom schemas.hosting import ServerConfig\n"
        "real = s.command\n"
        "s.command = lambda *a: [p.replace('pipeline.serving.supervise', 'supervise_stand_in') for p in real(*a)]\n"
        "server = s.ManagedServer(ServerConfig.model_validate_json(sys.argv[1]), log=Path(sys.argv[3]))\n"
        "server.start(); print(server.pid, flush=True); sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            config.model_copy(update={"restarts": 0}).model_dump_json(),
            str(ROOT),
            str(tmp_path / "log"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert parent.stdout is not None
        supervisor = int(parent.stdout.readline())
        processes = tree(supervisor)
        assert len(processes) == 3
        os.kill(parent.pid if victim == "parent" else supervisor, signal.SIGKILL)
        if victim == "parent":
            parent.wait()
        assert gone(processes, 10)
    finally:
        parent.kill()
        parent.communicate()
