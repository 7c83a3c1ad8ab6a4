"""What a training has seen of a task: by names, by texts, and by how pictures look."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.mbeir.image_store import ImageStore
from schemas.errors import InputError
from schemas.training import TrainConfig
from tests.support.cli import mbeir_cot
from tests.trainer.test_remedies import done as invoke
from trainer.data.dataset import Candidates, Records
from trainer.zero_shot.contamination import (
    TRAINING,
    Marks,
    PairSide,
    PicturesRead,
    TrainingIndex,
    describe_unread,
    image_key,
    text_key,
)
from trainer.zero_shot.mt_fiq import MT_FIQ
from trainer.zero_shot.perceptual_hash import difference_hash, near_duplicates
from trainer.zero_shot.tasks import Candidate, Measure, Picture, Query, Task


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("mbeir_images/mscoco_images/val2014/COCO_val2014_000000000139.jpg", "sugar-crepe/images/val2017/000000000139.jpg"),
        ("genecis/val2017/000000000139.jpg", "mbeir_images/mscoco_images/train2014/COCO_train2014_000000000139.jpg"),
        ("mbeir_images/fashioniq_images/B001.jpg", "M-BEIR/mbeir_images/fashioniq_images/B001.jpg"),
        ("mbeir_images/a/1.jpg", "M-BEIR/mbeir_images/a/1.jpg"),
    ],
)
def test_a_picture_has_one_key(one: str, other: str) -> None:
    assert image_key(one) == image_key(other)
    assert image_key("vist/images/val/139.jpg") != image_key("flickr/images/139.jpg")
    assert text_key(" A  Dog\n") == text_key("a dog")


def task(*queries: Query, candidates: tuple[Candidate, ...]) -> Task:
    return Task("t", "T", Measure.HITS, (1,), lambda: iter(queries), lambda: iter(candidates))


def test_each_mark_is_of_its_own_cause() -> None:
    index = TrainingIndex()
    index.add(PairSide("Is BLACK", ("r.jpg",)), [PairSide(None, ("t.jpg",))])
    index.add(PairSide(None, ("photo.jpg",)), [PairSide("a dog on a mat", ())])
    images = [Candidate(name, (Picture(f"{name}.jpg"),)) for name in ("t", "photo", "new")]
    pool = (*images, Candidate("caption", ("A dog on a mat",)))
    asked = task(
        Query("last turn", (Picture("x.jpg"), "a", Picture("r.jpg"), "b"), ("t",)),
        Query("first turn only", (Picture("r.jpg"), "a", Picture("x.jpg"), "b"), ("new",)),
        Query("text", (Picture("x.jpg"), "is  black"), ("new",)),
        Query("turned round", ("a dog on a mat",), ("photo",)),
        Query("caption", (Picture("x.jpg"),), ("caption",)),
        Query("nothing", ("a cat",), ("new",)),
        candidates=pool,
    )
    assert index.marks(asked) == {
        "last turn": Marks(pair=True, image=True),
        "first turn only": Marks(image=True),
        "text": Marks(text=True),
        "turned round": Marks(pair=True, image=True, text=True),
        "caption": Marks(text=True),
        "nothing": Marks(),
    }


def textured(seed: int) -> Image.Image:
    low = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(low).resize((320, 240), Image.Resampling.BICUBIC)


def test_near_duplicates_are_reduced_pictures_and_not_others_or_blank_ones(tmp_path: Path) -> None:
    pictures = [textured(seed) for seed in range(6)]
    known = np.stack([difference_hash(one) for one in [*pictures, Image.new("RGB", (64, 64), "white")]])
    small = []
    for at, one in enumerate(pictures):
        one.resize((160, 120)).save(tmp_path / f"{at}.jpg", quality=80)
        small.append(difference_hash(Image.open(tmp_path / f"{at}.jpg")))
    assert near_duplicates(np.stack(small), known).all()
    mirrored = [difference_hash(one.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) for one in pictures]
    others = np.stack([*(difference_hash(textured(seed)) for seed in range(20, 40)), *mirrored])
    assert not near_duplicates(others, known).any()
    blank = np.stack([difference_hash(Image.new("RGB", (64, 64), colour)) for colour in ("white", "black")])
    assert not near_duplicates(blank, known).any()
    assert not near_duplicates(others, known[:0]).any()


def test_a_trainings_own_pairs_are_found_in_mt_fiqs_form(config: TrainConfig, small_world: Path, tmp_path: Path) -> None:
    """Three in four of the last turns are training pairs, as of the published files; and none where FashionIQ is held out."""
    records = Records.load(config.data.dataset)
    items = [item for at in range(len(records)) if (item := records.item(at)).task.name == "fashioniq_task7"][:3]
    candidates = Candidates(config.data.mbeir, "train", config.data.candidate_cache)
    right = candidates.fetch([item.positives[0] for item in items])

    def asin(path: str | None) -> str:
        return Path(path or "").stem

    content = [
        {"target": ["", asin(target.img_path)], "reference": [["", ["changed"], "OTHER"], ["", ["is new"], asin(item.image)]]}
        for item, target in zip(items, right, strict=True)
    ]
    content.append({"target": ["", "NEW"], "reference": [["", ["is new"], "OTHER"]]})
    folder = tmp_path / "multiturnfashion"
    (folder / "data").mkdir(parents=True)
    (folder / "image_splits").mkdir()
    (folder / "data" / "all.val.json").write_text(json.dumps(content))
    pool = [*{asin(one.img_path) for one in right}, "NEW"]
    (folder / "image_splits" / "split.all.val.json").write_text(json.dumps(pool))
    (published,) = MT_FIQ.open(tmp_path)
    marks = TrainingIndex.of(config).marks(published)
    assert [one.pair for one in marks.values()] == [True, True, True, False]
    assert not marks["3"].seen
    held = config.model_copy(update={"data": config.data.model_copy(update={"hold_out": ("fashioniq_task7",)})})
    assert not any(one.pair for one in TrainingIndex.of(held).marks(published).values())

    done = mbeir_cot("contamination", config.data.dataset, "mt-fiq", "--root", tmp_path, "--mbeir", small_world, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mt-fiq"]["pair"] == 3


def test_near_duplicates_of_the_trainings_pictures(config: TrainConfig, small_world: Path, tmp_path: Path) -> None:
    records = Records.load(config.data.dataset)
    shown = next(image for (image, *_) in filter(None, records.query_images()))
    Image.open(small_world / shown).resize((96, 96)).save(tmp_path / "renamed.png")
    pool = (Candidate("c", ("no such words anywhere",)),)
    asked = task(Query("q", (Picture("renamed.png"),), ("c",)), candidates=pool)
    index = TrainingIndex.of(config, near=True)
    assert index.marks(asked, ImageStore(tmp_path)) == {"q": Marks(near=True)}
    assert index.marks(asked) == {"q": Marks()}


@pytest.fixture
def unmounted(small_world: Path, tmp_path: Path) -> Path:
    """The small world with its pictures behind a link that leads out of it."""
    root = tmp_path / "M-BEIR"
    shutil.copytree(small_world, root, copy_function=os.link)
    (root / "mbeir_images").rename(tmp_path / "pictures")
    (root / "mbeir_images").symlink_to(tmp_path / "pictures")
    return root


def moved(config: TrainConfig, mbeir: Path, *image_roots: Path) -> TrainConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"mbeir": mbeir, "image_roots": image_roots})})


def test_pictures_that_cannot_be_read_are_counted_and_none_is_refused(
    config: TrainConfig, unmounted: Path, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    shown = next(image for (image, *_) in filter(None, Records.load(config.data.dataset).query_images()))
    (pictures / shown.removeprefix("mbeir_images/")).unlink()
    index = TrainingIndex.of(moved(config, unmounted, pictures), near=True)
    assert index.read[TRAINING].unreadable == 1
    assert index.read[TRAINING].pictures > 1
    textured(1).save(tmp_path / "there.png")
    asked = task(Query("q", (Picture("there.png"), Picture("gone.png")), ("c",)), candidates=(Candidate("c", ("a",)),))
    index.marks(asked, ImageStore(tmp_path))
    assert index.read["t"] == PicturesRead(pictures=2, unreadable=1)
    assert len(describe_unread(index.read)) == 2
    lost = task(Query("q", (Picture("gone.png"),), ("c",)), candidates=(Candidate("c", ("a",)),))
    with pytest.raises(InputError, match=r"none of the 1 pictures of t can be read: .*gone\.png") as caught:
        index.marks(lost, ImageStore(tmp_path))
    assert "zero-shot check" in caught.value.remedy
    with pytest.raises(InputError, match=r"none of the \d+ pictures of the training can be read") as caught:
        TrainingIndex.of(moved(config, unmounted), near=True)
    assert "is the disk with the images mounted?" in caught.value.remedy


def test_the_command_says_what_it_could_not_read(config: TrainConfig, unmounted: Path, tmp_path: Path) -> None:
    folder, pictures = tmp_path / "multiturnfashion", tmp_path / "M-BEIR" / "mbeir_images" / "fashioniq_images"
    (folder / "data").mkdir(parents=True)
    (folder / "image_splits").mkdir()
    content = [{"target": ["", "NEW"], "reference": [["", ["is new"], "GONE"]]}]
    (folder / "data" / "all.val.json").write_text(json.dumps(content))
    (folder / "image_splits" / "split.all.val.json").write_text(json.dumps(["NEW"]))
    textured(1).save(pictures / "NEW.jpg")
    given = ("contamination", config.data.dataset, "mt-fiq", "--root", tmp_path, "--mbeir", unmounted, "--near")
    found = mbeir_cot(*given)
    assert found.returncode == 2
    assert "none of the" in found.stderr
    found = mbeir_cot(*given, "--image-root", tmp_path / "pictures", "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["mt-fiq"] == {
        "queries": 1, "pair": 0, "image": 0, "text": 0, "near": 0, "seen": 0, "unreadable": 1, "training_unreadable": 0,
    }  # fmt: skip
    found = mbeir_cot(*given, "--image-root", tmp_path / "pictures")
    assert "1 of 2 pictures of mt-fiq cannot be read" in found.stdout.replace("\n", " ")
    assert "of the training" in found.stdout


def test_image_roots_of_the_command_are_the_trainings_too(
    train_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Begun(Exception):
        pass

    def begun(config: TrainConfig, *_: object, **__: object) -> None:
        raise Begun(config.data.image_roots)

    monkeypatch.setattr("trainer.zero_shot.evaluate_suite.evaluate_suite", begun)
    monkeypatch.setattr("trainer.model.location.model_directory", lambda *_: tmp_path)
    with pytest.raises(Begun) as caught:
        invoke("zero-shot", "run", train_file, "--root", tmp_path, "--out", tmp_path, "--image-root", tmp_path)
    assert caught.value.args == ((tmp_path,),)
