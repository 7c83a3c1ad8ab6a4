"""A managed server that one request kills: the request is found and set aside, and the build continues."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from bench.oracle import TOKENIZER, Oracle
from tests.faults.conftest import Build, Inject
from tests.support.builds import rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_the_request_that_kills_the_server_is_a_rejection(
    small_world: Path, tmp_path: Path, build: Build, inject: Inject
) -> None:
    root = tmp_path / "M-BEIR"
    shutil.copytree(small_world, root)
    file = root / "query/train/mbeir_cirr_train.jsonl"
    queries = [json.loads(line) for line in file.read_text().splitlines()][:41]
    killers = [queries[number]["qid"] for number in (13, 29)]
    for query in queries:
        query["query_txt"] = ("LETHAL " if query["qid"] in killers else "") + query["query_txt"]
    file.write_text("\n".join(map(json.dumps, queries)) + "\n")
    log, deaths = tmp_path / "log", tmp_path / "deaths"
    server = [sys.executable, "-m", "bench.oracle_server", "{port}", "--log", str(log), "--delay", "0.05"]
    inject(server=[*server, "--die", "LETHAL", "--deaths", str(deaths)])
    config = Oracle(log).config(tmp_path, root, input__datasets=["cirr"], workers=2, route__policy="by-modality")
    settings = yaml.safe_load(config.read_text())
    settings["teacher"] |= {
        "hosting": "managed",
        "endpoints": [],
        "server": {"model": str(TOKENIZER), "device": "cpu", "max_model_len": 512, "restarts": 1, "startup_timeout_s": 60},
    }
    config.write_text(yaml.safe_dump(settings))
    manifest, _ = build(config)
    refused = {row["qid"]: row for row in rows(tmp_path / "out" / "dataset", "rejected")}
    assert {qid for qid, row in refused.items() if row["reason"] == "kills_server"} == set(killers)
    assert all("asked alone, its server died" in refused[qid]["detail"] for qid in killers)
    assert manifest.owed == 0
    assert manifest.records + len(refused) == 41
    assert max(Counter(log.read_text().split()).values()) == 1
    died = len(deaths.read_text().splitlines())
    assert died <= 2 * len(killers)  # once among others, once alone
    shutil.rmtree(tmp_path / "out" / "dataset")
    build(config)  # a request that is known to kill is not sent again
    assert len(deaths.read_text().splitlines()) == died
