from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.mbeir.jsonl import MalformedInput
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.work_list import WorkList, collect
from schemas.config import InputConfig
from schemas.errors import InputError
from schemas.mbeir import Query


def row(qid: str, task: int, text: str = "a dog") -> dict[str, object]:
    modality = {0: "text", 3: "image", 7: "image,text"}[task]
    return {
        "qid": qid, "query_txt": text if "text" in modality else None, "query_img_path": "q.jpg" if "image" in modality else None,
        "query_modality": modality, "query_src_content": None, "pos_cand_list": ["9:1"], "neg_cand_list": [], "task_id": task,
    }  # fmt: skip


def write(root: Path, name: str, rows: list[dict[str, object] | str], ending: str = "\n") -> None:
    place = root / "query" / ("union_train" if "union" in name else "train")
    place.mkdir(parents=True, exist_ok=True)
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    (place / f"mbeir_{name}_train.jsonl").write_text(ending.join(lines) + ending)


def work(root: Path, **config: object) -> WorkList:
    return collect(Layout.open(root), InputConfig.model_validate(config), rejects=root / "rejects.jsonl")


def ids(found: WorkList) -> list[str]:
    queries = [Query.model_validate_json(item.line) for item in found.read(0, len(found))]
    return [f"{query.dataset_task.name}/{query.qid}" for query in queries]


def test_queries_are_ordered_by_dataset_task_and_number(tmp_path: Path) -> None:
    write(tmp_path, "mscoco", [row("9:30", 3), row("9:4", 0), row("9:31", 0), row("9:5", 3)])
    write(tmp_path, "cirr", [row("8:10", 7), row("8:9", 7)], ending="\r\n")
    expected = ["cirr_task7/8:9", "cirr_task7/8:10"]
    expected += ["mscoco_task0/9:4", "mscoco_task0/9:31", "mscoco_task3/9:5", "mscoco_task3/9:30"]
    assert ids(work(tmp_path)) == expected
    assert work(tmp_path).tasks == [("cirr", 7), ("mscoco", 0), ("mscoco", 3)]
    assert [file.path for file in work(tmp_path).inputs] == [
        "query/train/mbeir_cirr_train.jsonl",
        "query/train/mbeir_mscoco_train.jsonl",
    ]


def test_repeated_rows_are_counted_and_different_contents_are_a_conflict(tmp_path: Path) -> None:
    write(tmp_path, "union_up", [row("8:1", 7), row("8:2", 7), row("8:1", 7), row("8:1", 7), row("8:2", 7, "another")])
    found = work(tmp_path, split="union_train").read(0, 9)
    assert [(item.multiplicity, item.split) for item in found] == [(3, "train"), (1, "train")]
    assert found[0].conflict is None
    assert json.loads(found[1].conflict or b"")["query_txt"] == "another"


def test_datasets_and_tasks_can_be_selected(tmp_path: Path) -> None:
    write(tmp_path, "mscoco", [row("9:1", 3), row("9:2", 0)])
    write(tmp_path, "cirr", [row("8:1", 7)])
    assert ids(work(tmp_path, datasets=["mscoco"])) == ["mscoco_task0/9:2", "mscoco_task3/9:1"]
    assert ids(work(tmp_path, tasks=[3, 7])) == ["cirr_task7/8:1", "mscoco_task3/9:1"]
    with pytest.raises(InputError, match="no query files of the split 'val'"):
        work(tmp_path, split="val")


def test_a_larger_limit_contains_a_smaller_one_and_both_are_spread_evenly(tmp_path: Path) -> None:
    write(tmp_path, "cirr", [row(f"8:{n}", 7) for n in range(1, 2001)])
    small, large = (set(ids(work(tmp_path, limit=limit))) for limit in (50, 400))
    assert len(small) == 50
    assert small < large
    halves = sum(int(identifier.split(":")[1]) <= 1000 for identifier in large)
    assert 150 < halves < 250


def test_malformed_lines_stop_the_build_or_are_recorded(tmp_path: Path) -> None:
    write(tmp_path, "cirr", [row("8:1", 7), "{broken", row("8:2", 7), json.dumps({"qid": "77:1"})])
    with pytest.raises(MalformedInput, match="mbeir_cirr_train.jsonl:2"):
        work(tmp_path)
    found = work(tmp_path, malformed_lines="skip")
    assert (len(found), found.malformed) == (2, 2)
    assert [json.loads(line)["line"] for line in (tmp_path / "rejects.jsonl").read_text().splitlines()] == [2, 4]
