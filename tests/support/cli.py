"""Runs the real command in a process where the imports are already done, or on demand in its own process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.support.shared_ray import share_ray

ROOT = Path(__file__).parents[2]
COLUMNS = {"COLUMNS": "120"}


def mbeir_cot(
    *arguments: str | Path, timeout: float = 120, own_process: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command and returns its exit code and output.

    Without environment variables it runs in this process, and the test's own timeout applies. With some it runs in another one,
    because libraries read theirs when they are imported; commands with the same variables one after the other share that process.
    With `own_process` it gets a process that runs nothing else.
    """
    given = [str(argument) for argument in arguments]
    if own_process:
        return subprocess.run(
            [sys.executable, "-m", "mbeir_cot", *given],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=os.environ | COLUMNS | environment,
        )
    return _process_with(environment).run(given, timeout) if environment else _run_here(given)


class _Process:
    """A process with these environment variables that runs one command after the other. It ends with this one."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.cli"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            cwd=ROOT,
            env=os.environ | COLUMNS | environment,
        )

    def alive(self) -> bool:
        return self._process.poll() is None

    def run(self, arguments: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([str(Path.cwd()), *arguments]) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], timeout)[0]:
            self.end()
            raise subprocess.TimeoutExpired(arguments, timeout)
        answer: dict[str, Any] = json.loads(process.stdout.readline() or '{"code": -1, "said": ["", "the process has ended"]}')
        return subprocess.CompletedProcess(arguments, answer["code"], *answer["said"])

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


_processes: list[_Process] = []


def _process_with(environment: dict[str, str]) -> _Process:
    if not (_processes and _processes[0].environment == environment and _processes[0].alive()):
        while _processes:
            _processes.pop().end()
        _processes.append(_Process(environment))
    return _processes[0]


def _run_those_asked_for() -> None:
    """Runs the commands that come in as lines, each the working directory and the arguments, until there are no more."""
    lines, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)  # a command neither reads these lines nor writes among the answers
    os.dup2(nothing, 1)
    for line in lines:
        directory, *arguments = json.loads(line)
        os.chdir(directory)
        done = _run_here(arguments)
        answers.write(json.dumps({"code": done.returncode, "said": [done.stdout, done.stderr]}) + "\n")
        answers.flush()


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


if __name__ == "__main__":
    _run_those_asked_for()
