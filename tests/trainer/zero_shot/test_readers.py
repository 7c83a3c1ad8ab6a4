from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.mbeir.image_store import ImageStore
from schemas.errors import InputError
from tests.trainer.zero_shot.conftest import put, tasks
from trainer.zero_shot import cc_neg
from trainer.zero_shot.captions import DESCRIBE
from trainer.zero_shot.circo import CHANGE, submission
from trainer.zero_shot.genecis import SAME_ATTRIBUTES
from trainer.zero_shot.suite import DATASETS
from trainer.zero_shot.suite_images import find
from trainer.zero_shot.tasks import Candidate, Picture, Query


@pytest.fixture
def converted(root: Path) -> Path:
    cc_neg.convert(root.parent / "ccneg_preprocessed.pt", root)
    return root


def test_the_suite_is_the_papers_table(whole: Path) -> None:
    columns = [column for dataset in DATASETS for column in dataset.columns]
    assert len(DATASETS) == 10
    assert len(columns) == len(set(columns)) == 13
    found = tasks(whole)
    assert {task.column for task in found.values()} == set(columns)
    assert {name for dataset in DATASETS for name in dataset.published} - set(found) == {
        f"sugar-crepe/{part}" for part in ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att")
    }
    assert [name for dataset in DATASETS for name in dataset.files if name not in dataset.found(whole)] == [
        f"sugar-crepe/data/{part}.json"
        for part in ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att")
    ]


def test_sugar_crepes_own_file(whole: Path) -> None:
    task = tasks(whole)["sugar-crepe/swap_obj"]
    queries, candidates = list(task.queries()), list(task.candidates())
    assert (len(queries), len(candidates)) == (245, 490)
    assert "108" not in {query.id for query in queries}
    assert queries[-1].id == "245"
    assert queries[0] == Query(
        "0", (Picture("sugar-crepe/images/val2017/000000222235.jpg"),), ("0/caption",), gallery=("0/caption", "0/negative")
    )
    assert [one.parts[0] for one in candidates[:2]] == [
        "A cat sits on its hind legs, and swats at the plant.",
        "A cat sits on the plant, and swats at its hind legs.",
    ]


def vist(identifier: str) -> Picture:
    return Picture(
        f"vist/images/val/{identifier}.jpg", (f"vist/images/val/{identifier}.png", f"vist/images/val/{identifier}.gif")
    )


def fashion(asin: str) -> Picture:
    return Picture(f"M-BEIR/mbeir_images/fashioniq_images/{asin}.jpg")


UNLABELED = "circo/images/unlabeled2017/{:012d}.jpg"
LAST = {
    "circo/val": Query("0", (Picture(UNLABELED.format(7)), "has two dogs"), ("9", "8"), CHANGE),
    "circo/test": Query("0", (Picture(UNLABELED.format(7)), "is red"), (), CHANGE),
    "genecis/change_object": Query(
        "1", (Picture("genecis/val2017/000000000005.jpg"), "sky"), ("3",), CHANGE, gallery=("3", "3", "1")
    ),
    "genecis/focus_attribute": Query(
        "1",
        (Picture("genecis/VG_100K_all/5.jpg", box=(2, 3, 4, 5)), "sky"),
        ("3_1_1",),
        SAME_ATTRIBUTES,
        gallery=("3_1_1", "3_1_2", "1_1_3"),
    ),
    "flickr30k/t2i": Query("1/4", ("caption 9",), ("1",)),
    "flickr30k/i2t": Query("1", (Picture("flickr/images/1.png"),), ("1/0", "1/1", "1/2", "1/3", "1/4"), DESCRIBE),
    "urban1k/t2i": Query("1000/0", ("street 1000",), ("1000",)),
    "urban1k/i2t": Query("1000", (Picture("Urban1k/image/1000.jpg"),), ("1000/0",), DESCRIBE),
    "sharegpt4v/i2t": Query("2", (Picture("sharegpt4v/val_data/sa_2.jpg"),), ("2/0",), DESCRIBE),
    "visdial": Query(
        "0",
        ("Q: how many dogs? A: 2. Q: is it red? A: yes, it is..",),
        ("0",),
        "Find me an everyday image that matches the given dialog.",
    ),
    "vist": Query(
        "2",
        ("start", vist("d"), "end"),
        ("d",),
        "I will provide you with a series of images and captions from a story, and I need you to retrieve the image "
        "corresponding to the last caption.",
        excluded=("d",),
    ),
    "mt-fiq": Query(
        "0",
        (fashion("A1"), "is red and is longer", fashion("A2"), "is blue"),
        ("A3",),
        "Find me a similar fashion image based on the following multi-round modifications.",
    ),
    "cc-neg": Query("2", (Picture("ccneg/images/2.jpg"),), ("2/caption",), gallery=("2/caption", "2/negative")),
}
CANDIDATES = {
    "circo/val": (3, Candidate("8", (Picture(UNLABELED.format(8)),))),
    "genecis/change_object": (4, Candidate("1", (Picture("genecis/val2017/000000000001.jpg"),))),
    "genecis/focus_attribute": (6, Candidate("1_1_3", (Picture("genecis/VG_100K_all/1.jpg", box=(2, 3, 4, 5)),))),
    "flickr30k/t2i": (2, Candidate("1", (Picture("flickr/images/1.png"),))),
    "flickr30k/i2t": (10, Candidate("1/4", ("caption 9",))),
    "urban1k/i2t": (1_000, Candidate("1000/0", ("street 1000",))),
    "visdial": (1, Candidate("0", (Picture("visdial/VisualDialog_val2018/VisualDialog_val2018_000000000077.jpg"),))),
    "vist": (4, Candidate("d", (vist("d"),))),
    "mt-fiq": (4, Candidate("A3", (fashion("A3"),))),
    "cc-neg": (6, Candidate("2/negative", ("a cat not a dog 2",))),
}


@pytest.mark.parametrize("name", LAST)
def test_last_query(name: str, whole: Path) -> None:
    task = tasks(whole)[name]
    assert list(task.queries())[-1] == LAST[name]
    assert list(task.queries()) == list(task.queries()), "streamed again"


@pytest.mark.parametrize("name", CANDIDATES)
def test_candidates(name: str, whole: Path) -> None:
    candidates = list(tasks(whole)[name].candidates())
    assert (len(candidates), candidates[-1]) == CANDIDATES[name]


def test_a_story_is_read_in_the_files_order(whole: Path) -> None:
    first = next(tasks(whole)["vist"].queries())
    assert first.parts == ("first", vist("b"), "then", vist("c"), "last")
    assert (first.positives, first.excluded) == (("a",), ("b", "c"))
    store = ImageStore(whole)
    assert [find(store, one) for one in first.pictures] == ["vist/images/val/b.png", "vist/images/val/c.gif"]


def test_genecis_parts_that_are_cut_already(root: Path) -> None:
    (root / "genecis/vg/focus_attribute").mkdir(parents=True)
    task = tasks(root)["genecis/focus_attribute"]
    assert list(task.queries())[-1].pictures == (Picture("genecis/vg/focus_attribute/5_1_0.jpg"),)
    assert list(task.candidates())[-1].pictures == (Picture("genecis/vg/focus_attribute/1_1_3.jpg"),)


def change(path: str, edit: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda root: put(root / path, edit(json.loads((root / path).read_text(encoding="utf-8"))))


def without(path: str, key: str) -> Callable[[Path], None]:
    return change(path, lambda content: [{name: value for name, value in content[0].items() if name != key}])


FASHION = "multiturnfashion/data/all.val.json"
STORIES = "vist/sis/val.story-in-sequence.json"
WRONG = {
    "cut off": (
        "circo/val",
        lambda root: put(root / "circo/annotations/val.json", '[{"id": 0'),
        r"val\.json: no JSON, or cut off",
    ),
    "kind": (
        "circo/val",
        lambda root: put(root / "circo/annotations/val.json", {}),
        r"val\.json: a list is expected, not dict",
    ),
    "absent": (
        "circo/val",
        lambda root: (root / "circo/annotations/image_info_unlabeled2017.json").unlink(),
        r"image_info_unlabeled2017\.json is missing",
    ),
    "key": (
        "circo/val",
        without("circo/annotations/val.json", "relative_caption"),
        r"val\.json, item 0: the key 'relative_caption' is",
    ),
    "target": (
        "circo/val",
        change("circo/annotations/val.json", lambda content: [content[0] | {"target_img_id": 8}]),
        r"item 0: 'gt_img_ids' is to begin with the target 8",
    ),
    "member": (
        "circo/val",
        change("circo/annotations/val.json", lambda content: [content[0] | {"gt_img_ids": [9, "8"]}]),
        r"item 0: 'gt_img_ids'\[1\] is to be an integer, not str",
    ),
    "inner": (
        "genecis/change_object",
        change("genecis/annotations/change_object.json", lambda content: [content[0] | {"gallery": [{"val_image_id": True}]}]),
        r"change_object\.json, item 0, gallery\[0\]: 'val_image_id' is to be an integer, not bool",
    ),
    "box": (
        "genecis/focus_attribute",
        change(
            "genecis/annotations/focus_attribute.json",
            lambda content: [content[0] | {"target": {"image_id": 2, "instance_bbox": [1, 2]}}],
        ),
        r"item 0, target: 'instance_bbox' is to be four numbers",
    ),
    "fives": (
        "flickr30k/t2i",
        change("flickr/flickr_text.json", lambda content: content[:-1]),
        r"9 captions, which is no multiple of 5",
    ),
    "caption": (
        "flickr30k/t2i",
        change("flickr/flickr_text.json", lambda content: [*content[:-1], 3]),
        r"item 9: a caption is to be",
    ),
    "place": (
        "visdial",
        change("visdial/visdial_1.0_val.json", lambda content: {"data": content["data"] | {"answers": ["2"]}}),
        r"the file, data, dialogs\[0\], dialog\[1\]: 'answer' is 1, but there are 1 answers",
    ),
    "sentence": (
        "vist",
        change(STORIES, lambda content: {"annotations": [[], *content["annotations"]]}),
        r"annotations\[0\] is to hold one sentence, not 0",
    ),
    "turn": (
        "mt-fiq",
        change(FASHION, lambda content: [content[0] | {"reference": [["u", "A1"]]}]),
        r"item 0: a turn of 'reference' is to be",
    ),
    "asin": (
        "mt-fiq",
        change("multiturnfashion/image_splits/split.all.val.json", lambda content: [1]),
        r"item 0: an asin is to be",
    ),
    "sugar": (
        "sugar-crepe/swap_obj",
        change("sugar-crepe/data/swap_obj.json", lambda content: content | {"12": {"filename": "x.jpg", "caption": "x"}}),
        r"swap_obj\.json, key '12': the key 'negative_caption' is missing",
    ),
    "line": (
        "cc-neg",
        lambda root: put(root / cc_neg.CONVERTED, '{"image": "a", "caption": "b", "negative": "c"}\n{'),
        r"line 2: no JSON",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_named_with_the_place(case: str, converted: Path) -> None:
    name, damage, message = WRONG[case]
    damage(converted)
    task = tasks(converted)[name]
    with pytest.raises(InputError, match=message) as caught:
        list(task.queries()), list(task.candidates())
    assert caught.value.remedy


def test_wrong_captions_of_streets(root: Path) -> None:
    for at in range(1, 5):
        put(root / f"Urban1K/caption/{at}.txt", "street" if at != 3 else "\nx")
    broken = root / "Urban1K/caption/3.txt"
    for message, damage in (
        (r"3\.txt: its first line is empty", lambda: broken.write_bytes(b"\xff\xfe")),
        (r"3\.txt is not UTF-8", broken.unlink),
        (r"3\.txt is missing", lambda: None),
    ):
        with pytest.raises(InputError, match=message):
            list(tasks(root)["urban1k/t2i"].queries())
        damage()


def test_what_circos_server_takes() -> None:
    ids = [str(at) for at in range(60)]
    assert submission({"3": ids}) == {"3": list(range(50))}
    for wrong in (ids[:49], ["1", *ids]):
        with pytest.raises(InputError, match="query 3 has fewer than 50 different images"):
            submission({"3": wrong})
