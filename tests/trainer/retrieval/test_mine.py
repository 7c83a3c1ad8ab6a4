"""The real `mbeir-cot mine` on a short run, and a training on what it wrote."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bench.oracle import Oracle
from schemas.mbeir import unhash_did
from tests.support.cli import mbeir_cot
from trainer.data.dataset import Records
from trainer.retrieval.index import Index
from trainer.retrieval.negatives import shared_positives

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def world(small_world: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world with a pool of the dataset's positives and 150 other candidates."""
    root = tmp_path_factory.mktemp("mine") / "M-BEIR"
    shutil.copytree(small_world, root, copy_function=os.link)
    records = Records.load(str(dataset))
    wanted = {did for listed in records.table["positives"].to_pylist() for did in listed}
    for path in sorted((root / "cand_pool" / "global").glob("*train*")):
        lines = path.read_text().splitlines()
        path.unlink()  # a hard link to the small world's
        kept = [
            line for number, line in enumerate(lines) if number % (len(lines) // 150) == 0 or json.loads(line)["did"] in wanted
        ]
        path.write_text("\n".join(kept) + "\n")
    return root


def test_a_run_mines_negatives_and_a_training_uses_them(
    world: Path, finished: Path, dataset: Path, train_file: Path, tmp_path: Path, oracle: Oracle
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    cache = f"data.candidate_cache={tmp_path / 'cache'}"
    given = ("--set", f"data.mbeir={world}", "--set", cache, "--quiet")
    done = mbeir_cot("mine", run, "--keep", "4", "--margin", "1", *given, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "negatives for" in done.stdout
    out = run / "trace" / "mined"
    rows = pq.read_table(out / "mined.parquet").to_pylist()
    report = json.loads((out / "report.json").read_text())
    records = Records.load(str(dataset))
    positives = records.table["positives"].to_pylist()
    assert [row["id"] for row in rows] == records.table["id"].to_pylist()
    masks = shared_positives(positives)
    (directory,) = out.glob("index-*")
    index = Index.open(directory)
    known = {unhash_did(int(hashed)) for hashed in index.ids}
    for row, mask in zip(rows, masks, strict=True):
        assert len(row["mined_negatives"]) <= 4
        assert not set(row["mined_negatives"]) & mask
        assert set(row["mined_negatives"]) <= known
        assert row["scores"] == sorted(row["scores"], reverse=True)
        assert all(score <= row["positive_score"] + 1e-6 for score in row["scores"])
    assert report["negatives"] == sum(len(row["mined_negatives"]) for row in rows) > 0
    assert report["mined"] == sum(bool(row["mined_negatives"]) for row in rows)
    vectors = np.asarray(index.vectors, np.float32)
    cosines = vectors @ vectors.T
    count = len(vectors)
    assert report["spread"] == pytest.approx((cosines.sum() - np.trace(cosines)) / (count * (count - 1)), abs=0.01)
    before = (out / "mined.parquet").read_bytes()
    again = mbeir_cot("mine", run, "--keep", "4", "--margin", "1", *given, timeout=300)
    assert again.returncode == 0, again.stderr
    assert (out / "mined.parquet").read_bytes() == before

    verifier = ("--verifier", oracle.config(tmp_path, world), "--yes", "0.9")
    done = mbeir_cot("mine", run, "--keep", "4", "--margin", "1", *verifier, *given, timeout=300)
    assert done.returncode == 0, done.stderr
    judged = pq.read_table(out / "mined.parquet").to_pylist()
    word = json.loads((out / "report.json").read_text())
    reasons = records.table["route"].to_pylist()
    for row, before_it, route in zip(judged, rows, reasons, strict=True):
        assert (row["positive_yes"] is not None) == (route == "reasoning")
        if route == "bypass":
            assert (row["mined_negatives"], set(row["yes"])) == (before_it["mined_negatives"], {None} & set(row["yes"]))
        assert set(row["mined_negatives"]) <= set(before_it["mined_negatives"])
        assert all(p is None or p <= 0.9 for p in row["yes"])
    assert word["right"] == report["negatives"] - word["negatives"] > 0
    assert word["judged"] == sum(len(row["mined_negatives"]) for row, r in zip(rows, reasons, strict=True) if r == "reasoning")
    assert f"{word['right']:,} of {word['judged']:,} that the verifier judged" in done.stdout.replace("\n", " ")

    mined = (
        "--set",
        "data.hard_negatives=mined",
        "--set",
        "loss.distillation_weight=0.5",
        "--set",
        f"data.mined={out / 'mined.parquet'}",
    )
    short = ("--set", "optimiser.max_steps=2", "--set", "variants=[direct]")
    done = mbeir_cot("train", train_file, "--out", tmp_path / "again", *mined, *short, *given, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "again" / "direct" / "metrics.jsonl").read_text().splitlines()]
    assert all(-1 <= line["similarity"] <= 1 for line in lines)
    assert any(line["distillation"] > 0 for line in lines)
