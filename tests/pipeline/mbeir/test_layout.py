from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.mbeir.layout import Layout, QueryFile
from schemas.errors import InputError
from schemas.mbeir import DATASET_TASKS, DatasetTask


def test_names_are_those_of_the_benchmark() -> None:
    layout = Layout(Path("R"))
    oven, coco = DatasetTask("oven", 6), DatasetTask("mscoco", 0)
    assert layout.queries("test", oven) == Path("R/query/test/mbeir_oven_task6_test.jsonl")
    assert (
        layout.queries("train", dataset="oven") == layout.queries("train", oven) == Path("R/query/train/mbeir_oven_train.jsonl")
    )
    assert layout.queries("union_train") == Path("R/query/union_train/mbeir_union_up_train.jsonl")
    assert layout.local_pool(oven, "train") == Path("R/cand_pool/local/mbeir_oven_task6_cand_pool.jsonl")
    assert layout.local_pool(coco, "test") == Path("R/cand_pool/local/mbeir_mscoco_task0_test_cand_pool.jsonl")
    assert layout.local_pool(coco, "train") is None
    assert (
        layout.global_pool("union_val")
        == layout.global_pool("val")
        == Path("R/cand_pool/global/mbeir_union_val_cand_pool.jsonl")
    )
    assert layout.qrels(QueryFile(layout.queries("test", oven), "test", "oven", oven)) == Path(
        "R/qrels/test/mbeir_oven_task6_test_qrels.txt"
    )


def test_the_complete_benchmark_has_44_query_files_and_18_local_pools() -> None:
    layout = Layout(Path("R"))
    assert len(list(layout.expected_query_files())) == 10 + 16 + 16 + 2
    pools = {layout.local_pool(task, split) for task in DATASET_TASKS for split in ("val", "test")}
    assert len(pools) == 18


def test_partial_directories_are_normal(mbeir: Path) -> None:
    layout = Layout.open(mbeir)
    assert [(f.split, f.path.name) for f in layout.query_files()] == [
        ("train", "mbeir_oven_train.jsonl"),
        ("train", "mbeir_mscoco_train.jsonl"),
        ("val", "mbeir_mscoco_task3_val.jsonl"),
        ("val", "mbeir_oven_task6_val.jsonl"),
        ("val", "mbeir_oven_task8_val.jsonl"),
        ("union_train", "mbeir_union_up_train.jsonl"),
        ("union_val", "mbeir_union_val.jsonl"),
    ]
    assert [(f.scope, f.name) for f in layout.pool_files()] == [
        ("local", "mscoco_task3_val"),
        ("local", "oven_task6"),
        ("local", "oven_task8"),
        ("global", "union_train"),
        ("global", "union_val"),
    ]


def test_a_missing_root_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\n.*mbeir fetch"):
        Layout.open(tmp_path / "nowhere")


def test_an_older_layout_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "cand_pool" / "union_pool").mkdir(parents=True)
    with pytest.raises(InputError, match="older layout.*cand_pool/union_pool"):
        Layout.open(tmp_path)


def test_the_parent_of_the_root_is_recognised(mbeir: Path) -> None:
    with pytest.raises(InputError, match=f"did you mean {mbeir}"):
        Layout.open(mbeir.parent)


def test_pools_that_may_hold_a_target(mbeir: Path) -> None:
    layout, oven, coco = Layout.open(mbeir), DatasetTask("oven", 6), DatasetTask("mscoco", 3)
    local = layout.local_pool(oven, "train")
    assert layout.target_pools(oven, "train") == [local, layout.global_pool("train")]
    assert layout.target_pools(coco, "train") == [layout.global_pool("train")]
    for path in (mbeir / "cand_pool/global").iterdir():
        path.unlink()
    infoseek = mbeir / "cand_pool/local/mbeir_infoseek_task6_cand_pool.jsonl"
    infoseek.write_text("")
    assert layout.target_pools(oven, "train") == [local, infoseek, layout.local_pool(DatasetTask("oven", 8), "train")]
    assert layout.target_pools(coco, "train") == []
