from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.mbeir.jsonl import MalformedInput
from pipeline.mbeir.stats import collect_stats, render
from tests.pipeline.mbeir.conftest import COCO, write_lines
from tests.support.cli import mbeir_cot


def test_counts_per_split_and_dataset_task(mbeir: Path, cache: Path) -> None:
    (mbeir / COCO / "COCO_2.jpg").unlink()
    stats = collect_stats(mbeir, cache_dir=cache)
    tasks = {(t.split, t.dataset_task): t for t in stats.tasks}
    assert len(tasks) == 3 + 3 + 3 + 3
    oven = tasks["val", "oven_task6"]
    assert (oven.queries, oven.positives, oven.local_pool, oven.outside_local_pool) == (1, 2, 2, 1)
    coco = tasks["val", "mscoco_task3"]
    assert (coco.queries, coco.positives, coco.local_pool, coco.outside_local_pool) == (3, 6, 6, 0)
    assert (coco.images, coco.missing_images) == (3, 1)
    assert tasks["train", "mscoco_task3"].local_pool is None
    union = tasks["union_train", "oven_task6"]
    assert (union.rows, union.queries) == (2, 1)  # up-sampled
    assert {p.pool: p.candidates for p in stats.pools}["union_train"] == 10
    assert {p.pool: p.by_modality for p in stats.pools}["oven_task8"] == {"image,text": 1}
    assert all(p.missing_images == 0 for p in stats.pools)


def test_images_may_be_missing(mbeir: Path, cache: Path) -> None:
    stats = collect_stats(mbeir, images=False, cache_dir=cache)
    assert {t.missing_images for t in stats.tasks} == {None}


def test_the_table_is_legible_at_80_columns(mbeir: Path, cache: Path) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render(collect_stats(mbeir, cache_dir=cache)))
    text = console.export_text()
    assert "…" not in text
    assert "oven_task6" in text
    assert "queries, union_train" in text


def test_malformed_files_are_an_error(mbeir: Path, cache: Path) -> None:
    write_lines(mbeir / "query/val/mbeir_oven_task6_val.jsonl", ["{"])
    with pytest.raises(MalformedInput):
        collect_stats(mbeir, cache_dir=cache)


def test_the_command_prints_pure_json(mbeir: Path, cache: Path) -> None:
    done = mbeir_cot("mbeir", "stats", mbeir, "--json", "--cache", cache)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pools"][0]["pool"] == "mscoco_task3_val"


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    done = mbeir_cot("mbeir", "stats", tmp_path / "none")
    assert done.returncode == 2
    assert "no M-BEIR directory" in done.stderr
    assert "what to do:" in done.stderr
    assert "Traceback" not in done.stderr
