"""A complete build without fakes: the shipped teacher on a real vLLM server, which is killed during the build."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pocket.evaluation.build_quality import quality
from tests.support.builds import ROOT, rows, start
from tests.support.cli import mbeir_cot

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(900)]


def servers_of(process: subprocess.Popen[Any], tag: str) -> list[psutil.Process]:
    found = []
    for other in psutil.process_iter():
        try:
            if any("vllm_server_main" in part for part in other.cmdline()) and other.environ().get("MBEIR_COT_TEST") == tag:
                found.append(other)
        except psutil.Error:
            continue
    return found


def test_the_pocket_dataset_is_built_while_its_server_is_killed(small_world: Path, tmp_path: Path) -> None:
    out, tag, root = tmp_path / "out", str(tmp_path), tmp_path / "M-BEIR"
    shutil.copytree(small_world, root)
    queries = root / "query" / "train" / "mbeir_cirr_train.jsonl"
    first, *others = queries.read_text().splitlines()
    endless = json.loads(first) | {"query_txt": "one more circle and " * 600}  # longer than the teacher's context
    queries.write_text("\n".join([json.dumps(endless), *others]) + "\n")
    datasets = ["cirr", "infoseek", "nights", "webqa"]
    total = sum(len((root / f"query/train/mbeir_{name}_train.jsonl").read_text().splitlines()) for name in datasets)
    arguments = ["--out", out, "--set", f"mbeir={root}", "--set", f"input.candidate_cache={tmp_path / 'cache'}"]
    arguments += ["--set", f"input.datasets=[{', '.join(datasets)}]", "--set", "teacher.server.startup_timeout_s=150"]
    process = start("build", ROOT / "configs" / "pocket.yaml", *arguments, MBEIR_COT_TEST=tag)

    def progress() -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((out / "work" / "progress.json").read_text())
        except (OSError, ValueError):
            return {"asked": 0}
        return found

    until = time.monotonic() + 300
    while progress()["asked"] < 60 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.2)
    assert process.poll() is None, process.communicate()[0]
    killed = servers_of(process, tag)
    assert killed
    for server in killed:
        os.kill(server.pid, signal.SIGKILL)
    try:
        said = process.communicate(timeout=600)[0]
    except subprocess.TimeoutExpired as error:
        os.kill(process.pid, signal.SIGKILL)
        logs = {str(log): log.read_text(errors="replace")[-6000:] for log in (out / "work").rglob("server-*.log")}
        pytest.fail(f"not over in {error.timeout:.0f} s: {progress()}\n{(error.output or b'')[-3000:]!r}\n{logs}")
    assert process.returncode == 0, said
    until = time.monotonic() + 15
    while servers_of(process, tag) and time.monotonic() < until:
        time.sleep(0.2)
    assert not servers_of(process, tag)

    dataset = out / "dataset"
    records, refused = rows(dataset), rows(dataset, "rejected")
    assert len({row["id"] for row in (*records, *refused)}) == len(records) + len(refused) == total
    assert not [row for row in refused if row["reason"] in ("exhausted_retries", "deadline")]
    assert [(row["qid"], row["reason"]) for row in refused if row["reason"] in ("prompt_too_long", "permanent_http")] == [
        (endless["qid"], "prompt_too_long")
    ]
    assert {row["route"] for row in records} == {"reasoning", "bypass"}
    assert (dataset / "README.md").read_text().split("---")[2].strip().startswith("**SYNTHETIC")
    figures = quality(out, small_world.parent / "truth")
    assert figures["assessment_auc"] > 0.9
    filters = figures["families"]["all"]
    assert filters["right_before"] > 0.6
    assert filters["right_after_screens"] >= filters["right_before"]
    assert filters["right_after_verify"] > filters["right_before"] + 0.05  # the filters improve it measurably
    assert filters["precision"] > 0.6
    assert filters["recall"] > 0.6
    assert {row["verdict"]["verifier"] for row in records if row["route"] == "reasoning"} == {"pocket-teacher"}

    asked = json.loads(mbeir_cot("ledger", "stats", out, "--json").stdout)["answers"]
    again = mbeir_cot(
        "build", ROOT / "configs" / "pocket.yaml", *arguments, "--set", "route.threshold=0.9", "--replace", timeout=300
    )
    assert again.returncode == 0, again.stderr
    if "starting" in again.stderr:  # a higher threshold only removes reasoning
        pytest.fail("a re-route asked the teacher")
    assert json.loads(mbeir_cot("ledger", "stats", out, "--json").stdout)["answers"] == asked
