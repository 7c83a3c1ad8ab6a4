"""The Slurm jobs, with fakes of Slurm, Ray and the program; the image and the KubeRay job agree with each other."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]

# A minimal srun: notes its arguments and the cores of the step, then runs the command.
SRUN = """
echo "srun cores=${SRUN_CPUS_PER_TASK:-1} $*" >> "$NOTES"
while :; do case $1 in -w) shift 2 ;; --*) shift ;; *) break ;; esac; done
exec "$@"
"""
APPTAINER = 'while [ "${1#*.sif}" = "$1" ]; do shift; done; shift; exec "$@"'
RAY = """
echo "ray $*" >> "$NOTES"
case $1 in
  start) [ -z "${RAY_FAILS:-}" ] || exit 1; exec sleep 30 ;;
  status) for i in $(seq "$JOINED"); do echo " 1 node_$i"; done ;;
esac
"""
PROGRAM = """
echo "mbeir-cot $*" >> "$NOTES"
trap 'echo stopped >> "$NOTES"; exit 143' TERM
[ -z "${LASTS:-}" ] || { touch "$NOTES.running"; for i in $(seq 100); do sleep 0.05; done; }
"""


@dataclass
class Cluster:
    """Fake programs on the PATH, and the file in which they note their calls."""

    folder: Path
    environment: dict[str, str]

    @property
    def notes(self) -> str:
        return (self.folder / "notes").read_text()

    def submit(self, script: str, *args: str, **environment: str) -> subprocess.Popen[bytes]:
        command = ["bash", str(ROOT / "deploy" / script), "a.yaml", *args]
        with (self.folder / "stderr").open("w") as stderr:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment | environment,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    programs = {
        "srun": SRUN,
        "apptainer": APPTAINER,
        "scontrol": "echo a1; echo a2",
        "hostname": "echo 10.0.0.1",
        "venv/bin/ray": RAY,
        "venv/bin/mbeir-cot": PROGRAM,
        "venv/bin/torchrun": 'echo "torchrun $*" >> "$NOTES"',
    }
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "a[1-2]", "SLURM_CPUS_PER_TASK": "64", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
    ours = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTES": str(tmp_path / "notes"), "VENV": str(tmp_path / "venv")}
    return Cluster(tmp_path, os.environ | slurm | ours | {"POLL_S": "0.05", "JOINED": "2"})


def finish(job: subprocess.Popen[bytes], cluster: Cluster) -> tuple[int, str]:
    """Waits for a job and returns its exit status and stderr; kills what it left running, as Slurm would."""
    try:
        status = job.wait(20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    return status, (cluster.folder / "stderr").read_text()


def test_a_build_starts_when_all_nodes_have_joined(cluster: Cluster) -> None:
    status, _ = finish(cluster.submit("slurm-build.sbatch", "--limit", "5"), cluster)
    assert status == 0
    assert "mbeir-cot build a.yaml --limit 5" in cluster.notes
    assert "ray start --head --node-ip-address=10.0.0.1 --port=6379 --num-cpus=64" in cluster.notes
    assert "ray start --address=10.0.0.1:6379 --num-cpus=64" in cluster.notes


@pytest.mark.parametrize("script", ["slurm-build.sbatch", "slurm-train.sbatch"])
def test_a_step_has_the_cores_of_its_task(cluster: Cluster, script: str) -> None:
    finish(cluster.submit(script), cluster)
    steps = re.findall(r"^srun cores=(\d+)", cluster.notes, re.MULTILINE)
    assert steps
    assert set(steps) == {"64"}


def test_nodes_that_do_not_join_end_the_job(cluster: Cluster) -> None:
    status, said = finish(cluster.submit("slurm-build.sbatch", JOINED="1", READY_S="1"), cluster)
    assert status == 1
    assert "1 of 2 nodes have joined" in said
    assert "READY_S" in said
    assert "mbeir-cot" not in cluster.notes


def test_a_ray_that_cannot_start_ends_the_job_at_once(cluster: Cluster) -> None:
    status, said = finish(cluster.submit("slurm-build.sbatch", JOINED="0", RAY_FAILS="1"), cluster)
    assert status == 1
    assert "'ray start' has ended" in said


def test_slurms_sigterm_reaches_the_driver(cluster: Cluster) -> None:
    job = cluster.submit("slurm-build.sbatch", LASTS="1")
    deadline = time.monotonic() + 10
    while not (cluster.folder / "notes.running").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    job.terminate()
    status, _ = finish(job, cluster)
    assert status == 143
    assert cluster.notes.endswith("stopped\n")


@pytest.mark.parametrize("script", ["slurm-build.sbatch", "slurm-train.sbatch"])
def test_steps_run_in_an_image(cluster: Cluster, script: str) -> None:
    status, said = finish(cluster.submit(script, IMAGE="/shared/x.sqsh", MOUNTS="/data:/data"), cluster)
    assert status == 0, said
    programs = [line for line in cluster.notes.splitlines() if line.startswith("srun") and "/venv/bin/" in line]
    assert any("mbeir-cot build" in line or "torchrun" in line for line in programs)  # the driver too
    for line in programs:
        assert f"--container-image=/shared/x.sqsh --container-mounts=/tmp:/tmp,{ROOT}:{ROOT},/data:/data" in line


@pytest.mark.parametrize("script", ["slurm-build.sbatch", "slurm-train.sbatch"])
def test_steps_run_in_apptainer(cluster: Cluster, script: str) -> None:
    status, said = finish(cluster.submit(script, IMAGE="/shared/x.sif"), cluster)
    assert status == 0, said
    programs = [line for line in cluster.notes.splitlines() if line.startswith("srun") and "/venv/bin/" in line]
    assert programs
    for line in programs:
        assert re.search(r"apptainer exec --nv --bind \S+ --pwd \S+ /shared/x.sif \S+/venv/bin/", line)


def test_the_image_fits_the_kuberay_job() -> None:
    job = yaml.safe_load((ROOT / "deploy" / "kuberay-rayjob.yaml").read_text())["spec"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    lock = (ROOT / "requirements-gpu.lock").read_text()
    cluster = job["rayClusterSpec"]
    assert f"ray=={cluster['rayVersion']}\n" in lock
    assert "aiohttp-cors==" in lock  # from ray[default]: without it there is no job server to submit to
    (folder,) = re.findall(r"^WORKDIR (\S+)", dockerfile, re.MULTILINE)
    program, _, config = job["entrypoint"].split()
    assert f"{folder}/.venv/bin/{program} " in dockerfile
    assert (ROOT / Path(config).relative_to(folder)).exists()
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert container["workingDir"] == folder
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/dev/shm"}


def test_the_image_copies_all_that_it_needs() -> None:
    ignored = set((ROOT / ".dockerignore").read_text().split())
    project = (ROOT / "pyproject.toml").read_text()
    packages = re.findall(r'"(\w+)\*"', project.split("[tool.setuptools.packages.find]")[1].split("]")[0])
    assert len(packages) == 7
    assert not ignored & {
        *packages,
        "configs",
        "deploy",
        "scripts",
        "README.md",
        "pyproject.toml",
        "requirements-gpu.lock",
        "LICENSE",
    }
    assert ".venv" in ignored
