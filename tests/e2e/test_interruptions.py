"""Builds that are killed, stopped or refused, or whose disk is full: no answer is lost, and the message says what to do."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.oracle import Oracle
from tests.support.builds import built, digests, kill, start
from tests.support.cli import mbeir_cot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def ray_pids(process: subprocess.Popen[Any], name: str) -> list[int]:
    """Processes of a build (they inherit its environment) with `name` in their command line."""
    found = []
    for other in psutil.process_iter():
        try:
            ours = any(name in part for part in other.cmdline()) and other.environ().get("MBEIR_COT_TEST") == tag_of(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        found += [other.pid] if ours else []
    return found


def wait_for_one(process: subprocess.Popen[Any], name: str) -> int:
    """Waits for such a process of a build. Remains of a killed build may still send requests for a moment."""
    until = time.monotonic() + 120
    while len(found := ray_pids(process, name)) != 1 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    (pid,) = found
    return pid


def tag_of(process: subprocess.Popen[Any]) -> str | None:
    return psutil.Process(process.pid).environ().get("MBEIR_COT_TEST")


def wait_for_log(oracle: Oracle, lines: int, process: subprocess.Popen[Any], timeout: float = 150) -> None:
    until = time.monotonic() + timeout
    while sum(oracle.answered().values()) < lines and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)


def test_after_ten_kills_the_dataset_is_that_of_an_undisturbed_build(
    finished: tuple[Path, Path, Oracle], small_world: Path, tmp_path: Path
) -> None:
    undisturbed = digests(finished[0] / "dataset")
    total = sum(finished[2].answered().values())
    rng = random.Random(5)
    kills, in_flight = 10, 8
    with Oracle(tmp_path / "oracle.log", delay=0.02) as oracle:
        config = oracle.config(tmp_path, small_world, workers=1)
        for number in range(kills):
            mark = sum(oracle.answered().values()) + rng.randint(12, total // (3 * kills))
            oracle.answer_at_most(mark + 2 * in_flight)  # on a busy machine the build would be finished before the kill
            process = start("build", config, "--quiet", MBEIR_COT_TEST=f"{tmp_path}-{number}")
            wait_for_log(oracle, mark, process)
            assert process.poll() is None, process.communicate()[0]
            if number % 3 == 1:  # a worker: the build continues by itself; then the driver
                os.kill(wait_for_one(process, "ray::WorkerActor"), signal.SIGKILL)
                oracle.answer_at_most(mark + 4 * in_flight)
                wait_for_log(oracle, mark + 3 * in_flight, process)
            elif number % 3 == 2:  # the raylet: the driver cannot continue
                os.kill(wait_for_one(process, "raylet/raylet"), signal.SIGKILL)
                time.sleep(0.3)
            kill(process)
            time.sleep(0.3)  # the server still answers what was in flight
        oracle.answer_at_most(None)
        built(config)
        asked = oracle.answered()
    assert digests(tmp_path / "out" / "dataset") == undisturbed
    again = sum(asked.values()) - len(asked)
    assert len(asked) == total
    assert again <= (kills + kills // 3) * in_flight, f"{again} answers of {total} were asked for again"


def test_a_node_of_a_cluster_dies_and_the_build_goes_on(
    finished: tuple[Path, Path, Oracle], small_world: Path, tmp_path: Path
) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        with Oracle(tmp_path / "oracle.log", delay=0.02) as oracle:
            config = oracle.config(tmp_path, small_world, workers=2)
            process = start("build", config, "--quiet", RAY_ADDRESS=cluster.address)
            wait_for_log(oracle, 120, process)
            assert process.poll() is None, process.communicate()[0]
            cluster.remove_node(node, allow_graceful=False)
            said = process.communicate(timeout=120)[0]
            assert process.returncode == 0, said
            asked = oracle.answered()
    finally:
        cluster.shutdown()
    assert digests(tmp_path / "out" / "dataset") == digests(finished[0] / "dataset")
    assert asked.keys() == finished[2].answered().keys()
    assert sum(asked.values()) - len(asked) <= 2 * 8


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "term"])
def test_a_build_that_is_stopped_says_how_to_resume(small_world: Path, tmp_path: Path, sent: signal.Signals) -> None:
    with Oracle(tmp_path / "oracle.log", delay=0.1) as oracle:
        config = oracle.config(tmp_path, small_world, input__limit=200)
        process = start("build", config)
        wait_for_log(oracle, 60, process)
        os.kill(process.pid, sent)
        said = process.communicate(timeout=60)[0]
        assert process.returncode == 130, said
        assert "run the same command again" in said
        status = mbeir_cot("status", tmp_path / "out", "--json")
        assert json.loads(status.stdout)["state"] == "stopped"
        assert not list((tmp_path / "out" / "ledger" / "journals").iterdir())
        answered = oracle.answered()
        built(config)
        assert not [key for key, count in oracle.answered().items() if count > 1]  # requests in flight were completed
        assert answered.keys() <= oracle.answered().keys()


def test_a_second_ctrl_c_ends_at_once(small_world: Path, tmp_path: Path) -> None:
    with Oracle(tmp_path / "oracle.log") as oracle:
        oracle.answer_at_most(1)  # the others stay in flight
        config = oracle.config(tmp_path, small_world, input__limit=60)
        process = start("build", config)
        board = tmp_path / "out" / "work" / "progress.json"
        for state in ("running", "stopping"):
            for _ in range(600):
                if board.is_file() and json.loads(board.read_bytes())["in_flight"] + (state == "stopping") > 0:
                    break
                assert process.poll() is None
                time.sleep(0.1)
            os.kill(process.pid, signal.SIGINT)
            began = time.monotonic()
            time.sleep(1)
        process.communicate(timeout=10)
        assert process.returncode == 130
        assert time.monotonic() - began < 10  # the requests in flight would never have been answered
        oracle.answer_at_most(None)
        said = built(config)
    assert "records of" in said


def test_a_second_build_into_the_same_directory_is_refused(small_world: Path, tmp_path: Path) -> None:
    with Oracle(tmp_path / "oracle.log", delay=0.1) as oracle:
        config = oracle.config(tmp_path, small_world)
        process = start("build", config, "--quiet")
        wait_for_log(oracle, 20, process)
        said = built(config, expect=2)
        assert "another build is running" in said
        assert str(process.pid) in said
        assert process.poll() is None
        kill(process)
    status = json.loads(mbeir_cot("status", tmp_path / "out", "--json").stdout)
    assert status["state"] == "killed"


def test_a_teacher_that_is_down_or_writes_no_traces_stops_the_build_early(small_world: Path, tmp_path: Path) -> None:
    with Oracle(tmp_path / "oracle.log", garbage="Reason:") as oracle:  # in every prompt: nothing is a trace
        config = oracle.config(tmp_path, small_world, route__policy="by-modality", early_stop__window=60)
        said = built(config, expect=2)
        assert "of the last 60 reasoning queries were rejected: reason: missing_reasoning" in said
        assert "preview" in said
    down = oracle.config(tmp_path, small_world, out=str(tmp_path / "down"), early_stop__unreachable_s=4)
    said = built(down, expect=2)
    assert "no server of the teacher can be reached" in said
    assert "teacher check" in said
    assert not (tmp_path / "down" / "dataset").exists()


TMPFS = """
set -e
mount -t tmpfs -o size=$SIZE none "$PLACE"
cp "$CONFIG" "$PLACE/build.yaml"
{before}
python=$1
if $python -m mbeir_cot build "$CONFIG" --quiet > "$SAID" 2>&1; then echo "did not fail"; exit 3; fi
{between}
$python -m mbeir_cot build "$CONFIG" --quiet >> "$SAID" 2>&1
cp -r "$PLACE/out/dataset" "$RESULT"
"""


@pytest.mark.parametrize("what", ["journal", "shards"])
def test_a_full_disk_is_an_error_after_which_the_build_resumes(
    finished: tuple[Path, Path, Oracle], small_world: Path, tmp_path: Path, what: str
) -> None:
    import sys

    if subprocess.run(["unshare", "-Urm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no user namespaces here: a small filesystem cannot be mounted")
    place = tmp_path / "small"
    place.mkdir()
    out = place / "out"
    if what == "journal":
        before, between, size = 'head -c 1900k /dev/zero > "$PLACE/filler"', 'rm "$PLACE/filler"', "2000k"
    else:  # all answers are in the ledger; only the shards do not fit, beside an old dataset
        before = f'mkdir "$PLACE/out"; cp -r "{finished[0]}/ledger" "$PLACE/out/"; mkdir "$PLACE/out/dataset"; echo old > "$PLACE/out/dataset/README.md"; '
        before += 'free=$(df --output=avail -k "$PLACE" | tail -1); head -c $((free - 80))k /dev/zero > "$PLACE/filler"'
        between, size = 'grep -q old "$PLACE/out/dataset/README.md"; rm "$PLACE/filler"', "8m"
    script = TMPFS.replace("{before}", before).replace("{between}", between)
    with Oracle(tmp_path / "oracle.log") as oracle:
        config = oracle.config(tmp_path, small_world, out=str(out))
        result, said = tmp_path / "result", tmp_path / "said"
        done = subprocess.run(
            ["unshare", "-Urm", "bash", "-c", script, "bash", sys.executable],
            env=os.environ
            | {"PLACE": str(place), "SIZE": size, "CONFIG": str(config), "SAID": str(said), "RESULT": str(result)},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr + said.read_text()
        again = [key for key, count in oracle.answered().items() if count > 1]
    assert "disk is full" in said.read_text()
    assert "run the same command again" in said.read_text() or "run again" in said.read_text()
    assert digests(result) == digests(finished[0] / "dataset")
    assert len(again) <= 8  # those in flight when the disk filled
