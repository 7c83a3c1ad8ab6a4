from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli import mbeir_cot
from tests.trainer.zero_shot.conftest import put
from trainer.zero_shot import cc_neg
from trainer.zero_shot.check import TaskCheck, check
from trainer.zero_shot.suite import DATASETS


def reports(root: Path) -> dict[str, TaskCheck]:
    return {one.task: one for one in check(DATASETS, root).tasks}


def test_a_whole_suite_is_right_and_a_small_one_is_said_to_be_small(whole: Path) -> None:
    report = check(DATASETS, whole)
    assert report.ok
    assert set(report.absent) == {"sugar-crepe"}
    found = {one.task: one for one in report.tasks}
    assert len(found) == 17
    assert found["sugar-crepe/swap_obj"].model_dump(include={"queries", "candidates", "missing", "problems", "notes"}) == {
        "queries": 245,
        "candidates": 490,
        "missing": 0,
        "problems": [],
        "notes": [],
    }
    assert found["circo/val"].images == 3
    assert found["mt-fiq"].notes == [
        "1 candidates are listed twice; each place counts",
        "1 queries here, 2,400 as published: its scores are not comparable",
        "4 candidates here, 6,274 as published: its scores are not comparable",
    ]
    assert found["vist"].notes[0] == "1 queries cannot be answered: what is right is passed over in them"


def without_image(root: Path) -> None:
    for name in ("b.png", "c.gif"):
        (root / "vist/images/val" / name).unlink()


WRONG: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "images": ("vist", without_image, "2 of 4 images: image_missing: vist/images/val/b.jpg, vist/images/val/c.jpg"),
    "outside": (
        "sharegpt4v/t2i",
        lambda root: put(root / "sharegpt4v/datas_for_validation.json", [{"image_name": "../../../x.jpg", "caption": "x"}]),
        "1 of 1 images: image_outside_root: sharegpt4v/val_data/../../../x.jpg",
    ),
    "stranger": (
        "mt-fiq",
        lambda root: put(root / "multiturnfashion/image_splits/split.all.val.json", ["A1", "A2"]),
        "1 queries name candidates that are not listed: 0",
    ),
    "twice": (
        "circo/test",
        lambda root: put(
            root / "circo/annotations/test.json", [{"id": 4, "reference_img_id": 7, "relative_caption": "is red"}] * 2
        ),
        "1 queries have an id that another has: 4",
    ),
    "broken": (
        "flickr30k/i2t",
        lambda root: put(root / "flickr/flickr_text.json", ["one"]),
        "flickr/flickr_text.json has 1 captions, which is no multiple of 5",
    ),
    "empty": ("flickr30k/i2t", lambda root: put(root / "flickr/flickr_text.json", []), "it is empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_and_fails(case: str, root: Path) -> None:
    task, damage, problem = WRONG[case]
    assert not reports(root)[task].problems
    damage(root)
    assert any(problem in one for one in reports(root)[task].problems), reports(root)[task].problems
    assert not check(DATASETS, root).ok


def test_commands(root: Path, whole: Path, tmp_path: Path) -> None:
    done = mbeir_cot("zero-shot", "convert-cc-neg", tmp_path / "ccneg_preprocessed.pt", root)
    assert (done.returncode, done.stdout) == (0, f"3 entries in {root / cc_neg.CONVERTED}\n")
    done = mbeir_cot("zero-shot", "check", whole)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not there: sugar-crepe: sugar-crepe/data/add_att.json" in done.stdout
    (root / "circo/images/unlabeled2017/000000000008.jpg").unlink()
    done = mbeir_cot("zero-shot", "check", root, "--json")
    assert done.returncode == 1
    assert {one["task"]: one["missing"] for one in json.loads(done.stdout)["tasks"] if one["missing"]} == {
        "circo/val": 1,
        "circo/test": 1,
    }
    done = mbeir_cot("zero-shot", "check", root, "--no-images")
    assert done.returncode == 0, done.stdout + done.stderr

    listed = json.loads(mbeir_cot("zero-shot", "list", whole, "--json").stdout)
    assert sum(len(one["columns"]) for one in listed) == 13
    assert all(one["source"] and one["licence"] and one["found"] for one in listed)
    done = mbeir_cot("zero-shot", "list", tmp_path)
    assert (done.returncode, done.stdout.count("(not there)"), done.stdout.count("(found)")) == (0, 22, 0)

    done = mbeir_cot("zero-shot", "check", tmp_path)
    assert (done.returncode, "nothing found" in done.stdout) == (1, True)
    done = mbeir_cot("zero-shot", "check", tmp_path / "none")
    assert done.returncode == 2
    assert "is no directory" in done.stderr
