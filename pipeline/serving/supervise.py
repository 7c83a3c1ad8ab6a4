"""Runs a server and makes sure that none of its processes outlives its parent.

    python -m pipeline.serving.supervise PARENT_PID -- ARGUMENTS OF THE SERVER

The supervisor leads a process group that contains the server and all its processes. It ends the whole group when its parent is
gone (even by SIGKILL), when it is told to stop, and when the server exits. The server watches the supervisor in the same way,
so that killing the supervisor leaves nothing behind either.

Imports nothing heavy: it must start before the server and stay small.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Final

POLL_SECONDS: Final = 0.5
GRACE_SECONDS: Final = 8.0
"""A server that is told to stop gets this long to end its own processes."""


def end_group() -> None:
    """Kills every process of this group, this one included."""
    os.killpg(os.getpgid(0), signal.SIGKILL)


def watch_parent(parent: int) -> None:
    """Ends the group once `parent` is no longer this process's parent. Returns at once; a thread watches."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        end_group()

    threading.Thread(target=watch, daemon=True, name="watch-parent").start()


def main(argv: list[str]) -> int:
    parent, separator, *arguments = argv
    if separator != "--":
        raise SystemExit("usage: supervise PARENT_PID -- ARGUMENTS")
    if os.getppid() != int(parent):
        return 1  # gone before we began
    watch_parent(int(parent))
    server = subprocess.Popen([sys.executable, "-m", "pipeline.serving.vllm_server_main", str(os.getpid()), *arguments])
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while server.poll() is None and not stopping.wait(POLL_SECONDS / 2):
        pass
    if server.poll() is None:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(GRACE_SECONDS)
    code = server.poll()
    print(f"supervisor: the server ended with code {code}", file=sys.stderr, flush=True)
    end_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
