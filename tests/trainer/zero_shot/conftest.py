"""A root with all ten data sets, small, each in the form in which it is published."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from trainer.zero_shot import cc_neg
from trainer.zero_shot.suite import DATASETS
from trainer.zero_shot.tasks import Task

SWAP_OBJ = Path(__file__).with_name("sugar_crepe") / "swap_obj.json"
"""SugarCrepe's own file, whole (MIT, see LICENSE beside it)."""


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def picture(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def ccneg_content(number: int) -> dict[str, Any]:
    return {
        "image_paths": [f"/workspace/datasets/cc3m/images/{at}.jpg" for at in range(number)],
        "annotations": [
            {"json": {"caption": f"a dog, {at}"}, "sop_data": {"negative-prompt": f"a cat, not, a dog {at}"}}
            for at in range(number)
        ],
    }


def genecis(key: str, box: bool) -> list[dict[str, Any]]:
    def shown(identifier: int) -> dict[str, Any]:
        return {key: identifier, **({"instance_bbox": [2, 3, 4, 5]} if box else {})}

    return [
        {"condition": "wall", "reference": shown(1), "target": shown(2), "gallery": [shown(3), shown(4)]},
        {"condition": "sky", "reference": shown(5), "target": shown(3), "gallery": [shown(3), shown(1)]},
    ]


def turn(*captions: str, asin: str) -> list[Any]:
    return ["http://x", list(captions), asin]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """All but Urban1K, which has a thousand files; of SugarCrepe three items. CC-Neg's published file is beside it."""
    write_suite(tmp_path / "suite", items=3)
    torch.save(ccneg_content(3), tmp_path / "ccneg_preprocessed.pt")
    return tmp_path / "suite"


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All ten, with CC-Neg converted. Not to be changed."""
    root = tmp_path_factory.mktemp("zero-shot") / "suite"
    write_suite(root, items=None)
    for at in range(1, 1001):
        put(root / f"Urban1k/caption/{at}.txt", f" street {at} \nsecond line\n")
        picture(root / f"Urban1k/image/{at}.jpg", b"")
    torch.save(ccneg_content(3), root.parent / "ccneg_preprocessed.pt")
    cc_neg.convert(root.parent / "ccneg_preprocessed.pt", root)
    return root


def write_suite(root: Path, *, items: int | None) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (10, 8), (200, 30, 30)).save(buffer, "JPEG")
    data = buffer.getvalue()

    swapped = dict(list(json.loads(SWAP_OBJ.read_text(encoding="utf-8")).items())[:items])
    put(root / "sugar-crepe/data/swap_obj.json", swapped)
    for one in swapped.values():
        picture(root / "sugar-crepe/images/val2017" / one["filename"], data)

    val = {
        "reference_img_id": 7,
        "target_img_id": 9,
        "relative_caption": "has two dogs",
        "shared_concept": "a dog",
        "gt_img_ids": [9, 8],
    }
    put(root / "circo/annotations/val.json", [val | {"id": 0, "semantic_aspects": ["cardinality"]}])
    put(
        root / "circo/annotations/test.json",
        [{"id": 0, "reference_img_id": 7, "relative_caption": "is red", "shared_concept": "x"}],
    )
    info = [{"id": at, "file_name": f"{at:012d}.jpg", "width": 10} for at in (9, 7, 8)]
    put(root / "circo/annotations/image_info_unlabeled2017.json", {"info": {}, "images": info})
    for at in (7, 8, 9):
        picture(root / f"circo/images/unlabeled2017/{at:012d}.jpg", data)

    for part in ("change_object", "focus_object"):
        put(root / f"genecis/annotations/{part}.json", genecis("val_image_id", box=False))
    for part in ("change_attribute", "focus_attribute"):
        put(root / f"genecis/annotations/{part}.json", genecis("image_id", box=True))
    for at in range(1, 6):
        picture(root / f"genecis/val2017/{at:012d}.jpg", data)
        picture(root / f"genecis/VG_100K_all/{at}.jpg", data)

    put(root / "flickr/flickr_text.json", [f"caption {at}" for at in range(10)])
    for at in range(2):
        picture(root / f"flickr/images/{at}.png", data)
    put(
        root / "sharegpt4v/datas_for_validation.json",
        [{"image_name": f"sa_{at}.jpg", "caption": f"long {at}"} for at in range(3)],
    )
    for at in range(3):
        picture(root / f"sharegpt4v/val_data/sa_{at}.jpg", data)

    dialog = [{"question": 1, "answer": 0, "answer_options": [0], "gt_index": 0}, {"question": 0, "answer": 1, "gt_index": 0}]
    lists = {"questions": ["is it red", "how many dogs"], "answers": ["2", "yes, it is."]}
    put(
        root / "visdial/visdial_1.0_val.json",
        {"data": {**lists, "dialogs": [{"image_id": 77, "caption": "a red dog", "dialog": dialog}]}},
    )
    picture(root / "visdial/VisualDialog_val2018/VisualDialog_val2018_000000000077.jpg", data)

    told = [("1", "first", "b"), ("2", "start", "d"), ("1", "then", "c"), ("2", "end", "d"), ("1", "last", "a")]
    sentences = [
        [{"story_id": story, "text": text, "photo_flickr_id": image, "worker_arranged_photo_order": 9 - at}]
        for at, (story, text, image) in enumerate(told)
    ]
    put(root / "vist/sis/val.story-in-sequence.json", {"annotations": sentences})
    for name in ("a.jpg", "b.png", "c.gif", "d.jpg"):
        picture(root / "vist/images/val" / name, data)

    put(
        root / "multiturnfashion/data/all.val.json",
        [{"target": ["u", "A3"], "reference": [turn("is red", "is longer", asin="A1"), turn("", "is blue", asin="A2")]}],
    )
    put(root / "multiturnfashion/image_splits/split.all.val.json", ["A1", "A3", "A2", "A3"])
    for at in (1, 2, 3):
        picture(root / f"M-BEIR/mbeir_images/fashioniq_images/A{at}.jpg", data)

    for at in range(3):
        picture(root / f"ccneg/images/{at}.jpg", data)


def tasks(root: Path) -> dict[str, Task]:
    return {task.name: task for dataset in DATASETS for task in dataset.open(root)}
