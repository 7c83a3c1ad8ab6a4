"""The real command with two processes, local, under torchrun and on Ray: the losses of one process."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from schemas.errors import InputError
from tests.support.cli import mbeir_cot
from tests.trainer.training.test_train import metrics
from trainer.training.launch_local import _understood

OWN_TRACES = tuple(
    word for setting in ("contrastive=mixed", "first_refresh=2", "refresh=2") for word in ("--set", f"traces.{setting}")
)
"""The student generates its own traces after steps 2 and 4."""


@pytest.fixture(scope="module")
def alone(train_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    done = mbeir_cot("train", train_file, "--out", run, *OWN_TRACES, timeout=200)
    assert done.returncode == 0, done.stderr
    return run


def agree(run: Path, other: Path) -> None:
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5, 6]
    for mine, theirs in zip(metrics(run), metrics(other), strict=True):
        assert mine == pytest.approx(theirs, rel=2e-3, abs=2e-4)
    assert (run / "trace" / "model" / "finished.json").is_file()


@pytest.mark.slow
def test_two_processes_under_torchrun_have_the_losses_of_one(train_file: Path, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def torchrun(*more: str) -> subprocess.CompletedProcess[str]:
        program = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            "mbeir_cot.app",
        ]
        given = ["train", str(train_file), "--out", str(run), *OWN_TRACES, *more]
        return subprocess.run([*program, *given], capture_output=True, text=True, timeout=300, check=False)

    done = torchrun()
    assert done.returncode == 0, done.stderr
    agree(run, alone)
    # stopped after four steps and resumed by both
    (run / "trace" / "checkpoints" / "step-00000006" / "state.json").unlink()
    (run / "trace" / "model" / "finished.json").unlink()
    assert torchrun().returncode == 0
    agree(run, alone)


@pytest.mark.slow
def test_two_local_processes_have_the_losses_of_one(train_file: Path, alone: Path, tmp_path: Path) -> None:
    done = mbeir_cot("train", train_file, "--out", tmp_path / "run", "--processes", "2", *OWN_TRACES, timeout=300)
    assert done.returncode == 0, done.stderr
    agree(tmp_path / "run", alone)
    assert done.stdout.count("trace: ") == 1


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_is_no_fault_of_the_program(train_file: Path, tmp_path: Path) -> None:
    place = tmp_path / "run" / "trace" / "checkpoints"
    place.parent.mkdir(parents=True)
    place.symlink_to(place.name)  # a link in a circle, as a stand-in for a full disk
    done = mbeir_cot("train", train_file, "--out", tmp_path / "run", "--processes", "2", timeout=300)
    assert done.returncode == 2, done.stderr
    assert "the training stopped: " in done.stderr
    assert "it goes on from the last checkpoint" in done.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "run/a"), "the training stopped: the disk is full: run/a"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the training stopped: the disk is full"),
        (InputError("a file is damaged"), "a file is damaged"),
        (RuntimeError("a bug"), "None"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "None"),
    ],
)
def test_what_is_said_of_a_process_that_fails(error: Exception, said: str) -> None:
    assert str(_understood(error)).startswith(said)


@pytest.mark.slow
def test_no_process_outlives_a_killed_training(train_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "mbeir_cot", "train", str(train_file), "--out", str(out), "--processes", "2"]
    parent = subprocess.Popen([*command, "--set", "optimiser.max_steps=500"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 200
        while not (out / "trace" / "metrics.jsonl").is_file() and parent.poll() is None and time.monotonic() < until:
            time.sleep(0.2)
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
        parent.kill()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    finally:
        parent.kill()
        parent.communicate()


@pytest.mark.slow
def test_an_error_in_a_local_process_is_reported_like_any_other(train_file: Path, tmp_path: Path) -> None:
    nowhere = ("--set", f"data.dataset={tmp_path / 'nowhere'}")
    done = mbeir_cot("train", train_file, "--out", tmp_path / "run", "--processes", "2", *nowhere, timeout=300)
    assert done.returncode == 2
    assert f"no dataset at {tmp_path / 'nowhere'}" in done.stderr
    assert "Traceback" not in done.stderr
    many = mbeir_cot("train", train_file, "--out", tmp_path / "run", "--processes", "4096")
    assert (many.returncode, "this machine has" in many.stderr) == (2, True)
    both = mbeir_cot("train", train_file, "--processes", "2", "--ray-workers", "2")
    assert (both.returncode, "use one of them" in both.stderr) == (2, True)


@pytest.mark.slow
def test_two_ray_workers_have_the_losses_of_one_process(train_file: Path, alone: Path, tmp_path: Path) -> None:
    done = mbeir_cot("train", train_file, "--out", tmp_path / "run", "--ray-workers", "2", *OWN_TRACES, timeout=300)
    assert done.returncode == 0, done.stderr
    agree(tmp_path / "run", alone)


@pytest.mark.slow
def test_an_error_in_a_ray_worker_is_reported_like_any_other(train_file: Path, tmp_path: Path) -> None:
    nowhere = ("--set", f"data.dataset={tmp_path / 'nowhere'}")
    done = mbeir_cot("train", train_file, "--out", tmp_path / "run", "--ray-workers", "1", *nowhere, timeout=300)
    assert done.returncode != 0
    assert f"no dataset at {tmp_path / 'nowhere'}" in done.stderr
    assert "make build-dataset" in done.stderr
    many = mbeir_cot("train", train_file, "--out", tmp_path / "run", "--ray-workers", "4096", timeout=300)
    assert many.returncode != 0
    assert "--ray-workers 4096" in many.stderr
