"""The real `mbeir-cot build`, with Ray, files and processes; its teacher is an oracle, so that builds can be compared."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from bench.oracle import Oracle
from schemas.record import EMB_TOKEN
from tests.support.builds import built, count_queries, digests, rows
from tests.support.cli import mbeir_cot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


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


def test_the_dataset_contains_no_local_path(finished: tuple[Path, Path, Oracle]) -> None:
    out, config, oracle = finished
    for path in (out / "dataset").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(config.parent).encode() not in content
            assert str(oracle.port).encode() + b"/v1" not in content


def test_a_second_build_asks_nothing_and_changes_nothing(finished: tuple[Path, Path, Oracle]) -> None:
    out, config, oracle = finished
    before, asked = digests(out / "dataset"), oracle.log.read_text()
    assert "Nothing has changed" in built(config)  # although the teacher has stopped
    shutil.rmtree(out / "dataset")
    built(config)
    assert digests(out / "dataset") == before
    assert oracle.log.read_text() == asked


def test_another_threshold_or_worker_count_asks_only_new_requests(
    finished: tuple[Path, Path, Oracle], small_world: Path, tmp_path: Path
) -> None:
    out, config, _ = finished
    before = digests(out / "dataset")
    work = tmp_path / "out"
    shutil.copytree(out, work)
    # fewer queries reason: all their answers are in the ledger
    reroute = ["reroute", config, "--threshold", "0.8", "--out", work]
    refused = mbeir_cot(*reroute, timeout=200)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert " traces, the dataset in " in " ".join(refused.stderr.split())
    assert digests(work / "dataset") == before
    done = mbeir_cot(*reroute, "--replace", timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    records = rows(work / "dataset")
    assert all((r["route"] == "reasoning") == (r["assessment"] >= 0.8) for r in records)
    assert digests(out / "dataset") == before
    # and back, with three workers: identical bytes
    built(config, "--set", "workers=3", "--out", str(work))
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
    assert not tries  # repairs are separate requests
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


def test_failed_requests_are_retried_only_on_demand(small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORACLE_PASS", "open-sesame-4711")
    with Oracle(tmp_path / "oracle.log", refuse="triangle") as oracle:
        endpoint = {"url": oracle.url, "model": "oracle", "api_key_env": "ORACLE_PASS"}
        built(
            oracle.config(tmp_path, small_world, input__datasets=["cirr", "mscoco"], teacher__endpoints=[endpoint]), "--debug"
        )
    monkeypatch.undo()
    _check_logs(tmp_path / "out", oracle.url)
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


def _check_logs(out: Path, endpoint: str) -> None:
    """Checks the logs of a build: its states, the endpoint, the failed requests with their cause, and the publication."""
    logs = {path.name: path.read_text() for path in (out / "work" / "logs").glob("*.log")}
    assert set(logs) >= {"build.log", "worker-0.log"}
    build = logs.pop("build.log")
    for wanted in (
        f"INFO    PID pipeline.build: mbeir-cot .* builds {out} from ",
        r"INFO    PID pipeline.annotate.build_progress: state: running",
        rf"INFO    PID pipeline.annotate.dispatcher: the teacher answers at {endpoint}",
        r"DEBUG   PID pipeline.annotate.dispatcher: chunk 0 from worker \d",
        rf"INFO    PID pipeline.build: published {out}/dataset: \d+ queries, 0 owed, \d+ files",
    ):
        assert re.search(
            rf"^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z {wanted.replace('PID', '[0-9]+')}", build, re.MULTILINE
        ), wanted
    workers = "".join(logs.values())
    failed = {row["id"] for row in rows(out / "dataset", "rejected") if row["reason"] == "permanent_http"}
    logged = set(
        re.findall(rf"WARNING \d+ pipeline.teacher.client: (\S+): permanent_http from {endpoint} after 1 attempts", workers)
    )
    assert failed == logged
    assert "open-sesame" not in build + workers
    assert "Bearer" not in build + workers


def test_rejections_may_become_bypass_records_and_images_may_be_sent(small_world: Path, tmp_path: Path) -> None:
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
    assert "there is no build in" in missing.stderr
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


def test_a_build_with_a_wanted_number_of_records(small_world: Path, tmp_path: Path) -> None:
    """Exactly as many of each dataset-task as its input can give; what another build has asked before changes nothing."""
    with Oracle(tmp_path / "oracle.log") as oracle:
        config = oracle.config(tmp_path, small_world, verify__threshold=0.9)
        said = built(config, "--accept", "6", "--per", "dataset-task")
        dataset = tmp_path / "out" / "dataset"
        found, before = rows(dataset) + rows(dataset, "rejected"), digests(dataset)
        counts = Counter(f"{row['dataset']}_task{row['task_id']}" for row in rows(dataset))
        manifest = json.loads((dataset / "manifest.json").read_text())
        assert set(counts.values()) == {6}
        assert manifest["short"] == {}
        assert manifest["left"] == count_queries(small_world) - len(found) == sum(task["left"] for task in manifest["tasks"])
        assert f"{manifest['left']:,} queries of the input were not needed" in said
        assert "left, because enough records were accepted" in (dataset / "README.md").read_text()
        assert "Nothing has changed" in built(config, "--accept", "6", "--per", "dataset-task")
        shutil.rmtree(tmp_path / "out" / "dataset")
        built(config, "--limit", "200", "--set", "workers=2")
        built(config, "--accept", "6", "--per", "dataset-task", "--set", "workers=3", "--replace")
    assert digests(dataset) == before
