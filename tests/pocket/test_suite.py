"""The miniature zero-shot suite: read by the suite's own readers, the same for a seed, and new to the training."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from pocket.world.scene import sample_scene
from pocket.world.suite.contrast_captions import PARTS, contrast
from pocket.world.suite.crowded_scenes import Crowds
from pocket.world.suite.write import write_suite
from schemas.errors import CotError
from trainer.zero_shot.check import check
from trainer.zero_shot.suite import DATASETS


def digest(root: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        found.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return found.hexdigest()


def test_every_data_set_is_read_and_whole(tmp_path: Path) -> None:
    assert write_suite(tmp_path / "a", number=4)
    report = check(DATASETS, tmp_path / "a")
    assert report.ok, [task.problems for task in report.tasks]
    columns = {column for dataset in DATASETS for column in dataset.columns}
    assert {task.column for task in report.tasks} == columns
    assert len(columns) == 13
    assert report.absent == {"circo": ["circo/annotations/test.json"]}
    assert not write_suite(tmp_path / "a", number=4)
    assert write_suite(tmp_path / "b", number=4)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    tasks = {task.name: task for dataset in DATASETS for task in dataset.open(tmp_path / "a")}
    assert max(len(query.pictures) for query in tasks["vist"].queries()) == 4
    assert max(len(query.pictures) for query in tasks["mt-fiq"].queries()) > 1
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine").touch()
    with pytest.raises(CotError, match="is no such suite"):
        write_suite(tmp_path / "c")


def test_scenes_are_fuller_than_any_of_the_training(small_world: Path) -> None:

    crowds = Crowds(random.Random(3))
    drawn = [crowds.scene() for _ in range(50)]
    targets = [crowds.changed(one)[1] for one in drawn[:20]]
    assert len({one.canonical for one in drawn + targets}) == 70
    assert min(len(one.things) for one in drawn + targets) >= 5
    images = (small_world.parent / "truth").glob("*image*")
    trained = [json.loads(line)["content"] for path in images for line in path.read_text().splitlines()]
    assert trained
    assert not {one.canonical for one in drawn + targets} & set(trained)


@pytest.mark.parametrize("part", PARTS)
def test_a_wrong_caption_differs_and_is_made_of_the_words_of_the_world(part: str) -> None:

    rng = random.Random(1)
    made = [pair for _ in range(200) if (pair := contrast(part, sample_scene(rng, least=5, most=7, repeat=0), rng)) is not None]
    assert len(made) > 20
    assert all(right != wrong for right, wrong in made)
    if part.startswith("swap"):
        assert all(
            sorted(right.replace(" an ", " a ").split()[1:]) == sorted(wrong.replace(" an ", " a ").split()[1:])
            for right, wrong in made
        )
