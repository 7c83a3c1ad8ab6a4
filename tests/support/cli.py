"""Runs the real command in this process, where the imports are already done, or on demand in its own process."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from tests.support.shared_ray import share_ray

COLUMNS = {"COLUMNS": "120"}


def mbeir_cot(
    *arguments: str | Path, timeout: float = 120, own_process: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command and returns its exit code and output.

    It runs in its own process with `own_process`, or if environment variables are given, because libraries read theirs when they
    are imported. `timeout` applies only there; otherwise the test's own timeout does.
    """
    given = [str(argument) for argument in arguments]
    if not own_process and not environment:
        return _run_here(given)
    return subprocess.run(
        [sys.executable, "-m", "mbeir_cot", *given],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=os.environ | COLUMNS | environment,
    )


def _run_here(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    from mbeir_cot.app import main

    if arguments[0] in ("build", "reroute"):
        share_ray()
    code = 0
    with (
        patch.dict(os.environ, COLUMNS),
        patch.object(sys, "argv", ["mbeir-cot", *arguments]),
        _streams() as said,
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return subprocess.CompletedProcess(arguments, code, *said)


@contextlib.contextmanager
def _streams() -> Iterator[list[str]]:
    """Redirects standard output and error to files, also for child processes. The list gets their texts."""
    texts: list[str] = []
    with contextlib.ExitStack() as stack:
        files = []
        for name in ("stdout", "stderr"):
            file = stack.enter_context(tempfile.TemporaryFile())
            number = {"stdout": 1, "stderr": 2}[name]
            getattr(sys, name).flush()
            former = os.dup(number)
            stack.callback(os.close, former)
            os.dup2(file.fileno(), number)
            stack.callback(os.dup2, former, number)
            stream = io.TextIOWrapper(os.fdopen(os.dup(file.fileno()), "wb"), encoding="utf-8", write_through=True)
            stack.enter_context(patch.object(sys, name, stream))
            stack.callback(stream.flush)
            files.append(file)
        try:
            yield texts
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for file in files:
                file.seek(0)
                texts.append(file.read().decode())
