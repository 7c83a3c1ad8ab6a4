"""The real `mbeir-cot build`, with Ray, files and processes; the teacher is an oracle so that two builds can be compared."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from schemas.record import EMB_TOKEN
from tests.builds import Oracle, digests, kill, rows, start
from tests.cli import mbeir_cot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def built(config: Path, *arguments: str, expect: int = 0, timeout: float = 200) -> str:
    done = mbeir_cot("build", config, "--quiet", *arguments, timeout=timeout)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def count_queries(root: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in (root / "query" / "train").glob("*.jsonl"))


@pytest.fixture(scope="module")
def finished(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Oracle]:
    """A build that nothing disturbed: its directory, its config, its teacher."""
    directory = tmp_path_factory.mktemp("finished")
    with Oracle(directory / "oracle.log") as oracle:
        config = oracle.config(directory, small_world)
        built(config)
    return directory / "out", config, oracle


def test_the_dataset_opens_and_accounts_for_every_query(
    finished: tuple[Path, Path, Oracle], small_world: Path, tmp_path: Path
) -> None:
    from datasets import load_dataset

    queries = count_queries(small_world)

    out = finished[0]
    records = load_dataset(str(out / "dataset"), split="train", cache_dir=str(tmp_path))
    rejected = load_dataset(str(out / "dataset"), "rejected", split="train", cache_dir=str(tmp_path))
    manifest = json.loads((out / "dataset" / "manifest.json").read_text())
    assert set(records.unique("route")) == {"reasoning", "bypass"}
    assert len(set(records["id"]) | set(rejected["id"])) == len(records) + len(rejected) == manifest["queries"] == queries
    assert records["id"] == sorted(records["id"], key=lambda i: (i.split("/")[1:3], int(i.rsplit(":", 1)[1])))
    assert sum(task["queries"] for task in manifest["tasks"]) == queries
    assert manifest["owed"] == 0
    for record in records:
        assert record["target"].endswith(EMB_TOKEN)
        assert (record["route"] == "reasoning") == (record["assessment"] >= 0.5)
        if record["route"] == "bypass":
            assert record["target"] == EMB_TOKEN
            assert not record["facets"]
        else:
            assert record["target"] == f"{record['reasoning']}\n{record['answer']}{EMB_TOKEN}"
            assert "<" not in record["target"].removesuffix(EMB_TOKEN)
            assert record["verdict"]["accepted"]
            assert record["verdict"]["confidence"] > 0.7
        assert record["provenance"]["teacher"] == "oracle"


def test_no_path_of_this_machine_is_in_the_dataset(finished: tuple[Path, Path, Oracle]) -> None:
    out, config, oracle = finished
    for path in (out / "dataset").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(config.parent).encode() not in content
            assert str(oracle.port).encode() + b"/v1" not in content


def test_again_asks_nothing_and_changes_nothing(finished: tuple[Path, Path, Oracle]) -> None:
    out, config, oracle = finished
    before, asked = digests(out / "dataset"), oracle.log.read_text()
    assert "Nothing has changed" in built(config)  # the teacher is not even there any more
    shutil.rmtree(out / "dataset")
    built(config)
    assert digests(out / "dataset") == before
    assert oracle.log.read_text() == asked


def test_another_threshold_or_annotator_count_asks_only_what_is_new(
    finished: tuple[Path, Path, Oracle], small_world: Path, tmp_path: Path
) -> None:
    out, config, _ = finished
    before = digests(out / "dataset")
    work = tmp_path / "out"
    shutil.copytree(out, work)
    # fewer reason: all that they need was asked for
    done = mbeir_cot("reroute", config, "--threshold", "0.8", "--out", work, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    records = rows(work / "dataset")
    assert all((r["route"] == "reasoning") == (r["assessment"] >= 0.8) for r in records)
    assert digests(out / "dataset") == before
    # and back, by three annotators: the very same bytes
    built(config, "--set", "annotators=3", "--out", str(work))
    assert {k: v for k, v in digests(work / "dataset").items() if k.startswith(("data", "rejected"))} == {
        k: v for k, v in before.items() if k.startswith(("data", "rejected"))
    }


def test_bad_input_becomes_rejections_with_their_reasons(small_world: Path, tmp_path: Path) -> None:
    root = tmp_path / "M-BEIR"
    shutil.copytree(small_world, root)
    lines = (root / "query/train/mbeir_cirr_train.jsonl").read_text().splitlines()
    queries = [json.loads(line) for line in lines]
    images = [root / query["query_img_path"] for query in queries[:4]]
    for image in images:
        assert image.is_file()
    wanted: dict[str, str] = {}
    names = ["missing", "truncated", "bomb", "outside"]
    for query, image, name in zip(queries, images, names, strict=False):
        own = image.with_name(f"{name}.jpg")
        shutil.copy(image, own)
        query["query_img_path"] = str(own.relative_to(root))
        wanted[query["qid"]] = {"outside": "image_outside_root", "bomb": "image_too_many_pixels"}.get(name, f"image_{name}")
        if name == "missing":
            own.unlink()
        elif name == "truncated":
            own.write_bytes(own.read_bytes()[:-300])
        elif name == "bomb":
            from PIL import Image

            Image.new("1", (30_000, 30_000)).save(own.with_suffix(".png"))
            own.with_suffix(".png").replace(own)
        else:
            own.unlink()
            own.symlink_to("/etc/hostname")
    queries[4]["query_txt"] = None
    wanted[queries[4]["qid"]] = "empty_text"
    queries[5]["pos_cand_list"] = ["8:999999"]
    queries[6]["query_txt"] = "GARBAGE " + queries[6]["query_txt"]
    (root / "query/train/mbeir_cirr_train.jsonl").write_text("\n".join(json.dumps(query) for query in queries) + "\n")
    with Oracle(tmp_path / "oracle.log", garbage="GARBAGE") as oracle:
        config = oracle.config(tmp_path, root, route__policy="by-dataset", input__datasets=["cirr", "nights"])
        built(config)
        tries = [c for c in oracle.answered().values() if c > 1]
    assert not tries  # repairs are requests of their own
    dataset = tmp_path / "out" / "dataset"
    refused = {row["qid"]: row for row in rows(dataset, "rejected") if row["dataset"] == "cirr"}
    assert {qid: refused[qid]["reason"] for qid in wanted} == wanted
    assert refused[queries[5]["qid"]]["reason"] == "target_missing"
    garbage = refused[queries[6]["qid"]]
    assert (garbage["stage"], garbage["reason"], garbage["attempts"]) == ("reason", "missing_reasoning", 3)
    assert garbage["raw_answer"] == "I cannot do that"
    others = {row["qid"] for row in rows(dataset) if row["dataset"] == "cirr"}
    assert len(others) + len(refused) == len(queries)
    assert not any(row["dataset"] == "nights" for row in rows(dataset, "rejected"))


def ray_pids(process: subprocess.Popen[Any], name: str) -> list[int]:
    """Processes with this in their command line that belong to a build (they inherit its environment)."""
    found = []
    for other in psutil.process_iter():
        try:
            ours = any(name in part for part in other.cmdline()) and other.environ().get("MBEIR_COT_TEST") == tag_of(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        found += [other.pid] if ours else []
    return found


def wait_for_one(process: subprocess.Popen[Any], name: str) -> int:
    """The one such process of a build. What a killed build leaves may go on asking for a moment, before this one has begun."""
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


def test_killed_at_ten_moments_it_ends_as_if_nothing_had_happened(
    finished: tuple[Path, Path, Oracle], small_world: Path, tmp_path: Path
) -> None:
    undisturbed = digests(finished[0] / "dataset")
    total = sum(finished[2].answered().values())
    rng = random.Random(5)
    kills, in_flight = 10, 8
    with Oracle(tmp_path / "oracle.log", delay=0.02) as oracle:
        config = oracle.config(tmp_path, small_world, annotators=1)
        for number in range(kills):
            mark = sum(oracle.answered().values()) + rng.randint(12, total // (3 * kills))
            process = start("build", config, "--quiet", MBEIR_COT_TEST=f"{tmp_path}-{number}")
            wait_for_log(oracle, mark, process)
            assert process.poll() is None, process.communicate()[0]
            if number % 3 == 1:  # an annotator: the build goes on by itself; then the driver
                os.kill(wait_for_one(process, "ray::Annotator"), signal.SIGKILL)
                wait_for_log(oracle, mark + 5, process)
            elif number % 3 == 2:  # the raylet: the driver cannot go on
                os.kill(wait_for_one(process, "raylet/raylet"), signal.SIGKILL)
                time.sleep(0.3)
            kill(process)
            time.sleep(0.3)  # the server still answers what was in flight
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
            config = oracle.config(tmp_path, small_world, annotators=2)
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
def test_a_build_that_is_asked_to_stop_says_how_to_go_on(small_world: Path, tmp_path: Path, sent: signal.Signals) -> None:
    with Oracle(tmp_path / "oracle.log", delay=0.1) as oracle:
        config = oracle.config(tmp_path, small_world)
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
        assert not [key for key, count in oracle.answered().items() if count > 1]  # what was in flight was waited for
        assert answered.keys() <= oracle.answered().keys()


def test_a_second_ctrl_c_ends_at_once(small_world: Path, tmp_path: Path) -> None:
    with Oracle(tmp_path / "oracle.log", delay=20) as oracle:
        config = oracle.config(tmp_path, small_world)
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
        assert time.monotonic() - began < 10  # the answers in flight would have taken longer
    with Oracle(tmp_path / "oracle.log") as oracle:
        said = built(oracle.config(tmp_path, small_world))
    assert "records of" in said


def test_failed_requests_are_asked_again_only_when_told_so(small_world: Path, tmp_path: Path) -> None:
    with Oracle(tmp_path / "oracle.log", refuse="triangle") as oracle:
        built(oracle.config(tmp_path, small_world, input__datasets=["cirr", "mscoco"]))
    failed = {row["id"] for row in rows(tmp_path / "out" / "dataset", "rejected") if row["reason"] == "permanent_http"}
    assert failed
    with Oracle(tmp_path / "again.log") as oracle:
        config = oracle.config(tmp_path, small_world, input__datasets=["cirr", "mscoco"])
        built(config)
        assert not oracle.answered()
        still = {row["id"] for row in rows(tmp_path / "out" / "dataset", "rejected") if row["reason"] == "permanent_http"}
        assert still == failed
        built(config, "--retry-failed")
        assert oracle.answered()
    assert not [row for row in rows(tmp_path / "out" / "dataset", "rejected") if row["reason"] == "permanent_http"]


def test_a_second_build_into_the_same_directory_refuses(small_world: Path, tmp_path: Path) -> None:
    with Oracle(tmp_path / "oracle.log", delay=0.1) as oracle:
        config = oracle.config(tmp_path, small_world)
        process = start("build", config, "--quiet")
        wait_for_log(oracle, 20, process)
        said = built(config, expect=2)
        assert "another build is at work" in said
        assert str(process.pid) in said
        assert process.poll() is None
        kill(process)
    status = json.loads(mbeir_cot("status", tmp_path / "out", "--json").stdout)
    assert status["state"] == "killed"


def test_a_teacher_that_is_down_or_wrong_stops_the_build_early(small_world: Path, tmp_path: Path) -> None:
    with Oracle(tmp_path / "oracle.log", garbage="Reason:") as oracle:  # in every prompt: nothing is a trace
        config = oracle.config(tmp_path, small_world, route__policy="by-modality", stop__window=60)
        said = built(config, expect=2)
        assert "of the last 60 reasoning queries were rejected: reason: missing_reasoning" in said
        assert "preview" in said
    down = oracle.config(tmp_path, small_world, out=str(tmp_path / "down"), stop__unreachable_s=4)
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
if $python -m pipeline.cli.main build "$CONFIG" --quiet > "$SAID" 2>&1; then echo "did not fail"; exit 3; fi
{between}
$python -m pipeline.cli.main build "$CONFIG" --quiet >> "$SAID" 2>&1
cp -r "$PLACE/out/dataset" "$RESULT"
"""


@pytest.mark.parametrize("what", ["journal", "shards"])
def test_a_full_disk_is_said_and_resumed_after(
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
    else:  # everything is answered already; only the shards do not fit, and an old dataset is there
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


def test_rejects_may_become_bypass_records_and_images_may_travel(small_world: Path, tmp_path: Path) -> None:
    from datasets import load_dataset
    from PIL import Image

    with Oracle(tmp_path / "oracle.log") as oracle:
        config = oracle.config(
            tmp_path, small_world, on_reject="bypass", verify__threshold=0.9, output__with_images=True, input__datasets=["cirr"]
        )
        built(config)
    dataset = tmp_path / "out" / "dataset"
    records, refused = rows(dataset), rows(dataset, "rejected")
    assert refused
    spared = {row["id"] for row in records} & {row["id"] for row in refused}
    assert spared == {row["id"] for row in refused}
    assert all(row["route"] == "bypass" and row["target"] == EMB_TOKEN for row in records if row["id"] in spared)
    pictured = load_dataset(str(dataset), "with_images", split="train", cache_dir=str(tmp_path / "hf"))
    assert pictured["id"] == [row["id"] for row in records]
    assert pictured[0]["query_image"].size == Image.open(small_world / records[0]["query_image"]).size


def test_repeated_rows_are_asked_once(small_world: Path, tmp_path: Path) -> None:
    root = tmp_path / "M-BEIR"
    shutil.copytree(small_world, root)
    lines = (root / "query/train/mbeir_cirr_train.jsonl").read_text().splitlines()
    union = root / "query/union_train/mbeir_union_up_train.jsonl"
    union.parent.mkdir(exist_ok=True)
    changed = json.loads(lines[0]) | {"query_txt": "something else"}
    union.write_text("\n".join([*lines, *lines[:10], json.dumps(changed)]) + "\n")
    with Oracle(tmp_path / "oracle.log") as oracle:
        built(oracle.config(tmp_path, root, input__split="union_train"))
        assert max(oracle.answered().values()) == 1
    dataset = tmp_path / "out" / "dataset"
    found = rows(dataset) + rows(dataset, "rejected")
    conflicts = [row for row in found if row.get("reason") == "conflicting_rows"]
    assert [row["query_text"] for row in conflicts] == ["something else"]
    assert sum(row["multiplicity"] for row in found if row not in conflicts) == len(lines) + 10


def test_the_commands_around_a_build(finished: tuple[Path, Path, Oracle], small_world: Path, tmp_path: Path) -> None:
    out, queries = finished[0], count_queries(small_world)
    status = json.loads(mbeir_cot("status", out, "--json").stdout)
    assert (status["state"], status["total"]) == ("finished", queries)
    assert str(queries) in mbeir_cot("status", out).stdout
    stats = json.loads(mbeir_cot("stats", out, "--json").stdout)
    assert stats["queries"] == queries
    assert "cirr_task7" in mbeir_cot("stats", out).stdout
    ledger = json.loads(mbeir_cot("ledger", "stats", out, "--json").stdout)
    assert set(ledger["kinds"]) == {"assess", "reason", "verify"}
    assert ledger["kinds"]["assess"]["answers"] <= queries
    assert mbeir_cot("ledger", "verify", out).returncode == 0
    missing = mbeir_cot("status", tmp_path)
    assert missing.returncode == 2
    assert "no build was begun" in missing.stderr
    with Oracle(tmp_path / "oracle.log") as oracle:
        config = oracle.config(tmp_path, small_world, route__policy="by-modality")
        preview = mbeir_cot("preview", config, "-n", "40")
        assert preview.returncode == 0, preview.stderr
        assert "route: reasoning" in preview.stdout
        assert "answer is not the source" in preview.stdout
        assert "confidence" in preview.stdout
        assert not (tmp_path / "out").exists()
        estimate = mbeir_cot("estimate", config, "--sample", "60", "--gpus", "8", "--json")
        assert estimate.returncode == 0, estimate.stderr
        figures = json.loads(estimate.stdout)
        assert figures["queries"] == queries
        built(config)
        truth = json.loads(mbeir_cot("ledger", "stats", tmp_path / "out", "--json").stdout)
        calls = sum(kind["answers"] for kind in truth["kinds"].values())
        assert figures["calls"] == pytest.approx(calls, rel=0.4)
