"""Writes the miniature suite: annotations in the form in which each data set is published, and pictures where its own lie."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from PIL import Image

from pocket.world.draw import SIDE, draw_garment, draw_scene, jpeg
from pocket.world.garment import sample_garment
from pocket.world.garment_edits import sample_garment_edit
from pocket.world.lexicon import CELLS, NUMBERS, plural
from pocket.world.scene import Scene, Thing
from pocket.world.suite.contrast_captions import PARTS, contrast, negation
from pocket.world.suite.crowded_scenes import Crowds, another, dialogue, long_caption, noun, short_caption, with_thing
from schemas.errors import CotError

NUMBER: Final = 24
"""Queries of a task, about."""
MARK: Final = "synthetic-suite.json"
_GALLERY: Final = 9
_CELL: Final = SIDE / 3


def write_suite(out: Path, *, seed: int = 11, number: int = NUMBER, force: bool = False) -> bool:
    """Whether it was written; False where it is there already. Raises CotError for a directory with something else in it."""
    about = json.dumps({"synthetic": True, "seed": seed, "number": number, "form": 1})
    mark = out / MARK
    if mark.is_file() and mark.read_text(encoding="utf-8") == about:
        return False
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not force and not mark.is_file():
        raise CotError(f"{out} exists and is no such suite", "name another directory, or pass --force")
    mark.unlink(missing_ok=True)
    for at, write in enumerate(_WRITERS):
        write(_Folder(out, random.Random(f"{seed}/{at}")), number)  # noqa: S311 (not for secrets)
    mark.write_text(about, encoding="utf-8")
    return True


class _Folder:
    """Files below the root, with the randomness of one data set."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self.root, self.rng, self.crowds = root, rng, Crowds(rng)

    def put(self, path: str, content: Any) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content if isinstance(content, str) else json.dumps(content, indent=1), encoding="utf-8")

    def draw(self, path: str, shown: Scene | Image.Image) -> None:
        image = shown if isinstance(shown, Image.Image) else draw_scene(shown, self.rng)
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.suffix == ".png":
            image.save(place)
        else:
            place.write_bytes(jpeg(image))


def _sharegpt4v(folder: _Folder, number: int) -> None:
    rows = []
    for at in range(number):
        scene = folder.crowds.scene()
        folder.draw(f"sharegpt4v/val_data/sa_{at}.jpg", scene)
        rows.append({"image_name": f"sa_{at}.jpg", "caption": long_caption(scene, folder.rng)})
    folder.put("sharegpt4v/datas_for_validation.json", rows)


def _urban1k(folder: _Folder, number: int) -> None:
    for at in range(1, number + 1):
        scene = folder.crowds.scene()
        folder.draw(f"Urban1K/image/{at}.jpg", scene)
        folder.put(f"Urban1K/caption/{at}.txt", long_caption(scene, folder.rng) + "\n")


def _flickr30k(folder: _Folder, number: int) -> None:
    captions = []
    for at in range(number):
        scene = folder.crowds.scene()
        folder.draw(f"flickr/images/{at}.png", scene)
        captions += [short_caption(scene, folder.rng) for _ in range(5)]
    folder.put("flickr/flickr_text.json", captions)


def _circo(folder: _Folder, number: int) -> None:
    """Two changes at once; a right answer is drawn up to three times."""
    info: list[dict[str, Any]] = []

    def image(scene: Scene) -> int:
        identifier = len(info) + 1
        folder.draw(f"circo/images/unlabeled2017/{identifier:012d}.jpg", scene)
        info.append({"id": identifier, "file_name": f"{identifier:012d}.jpg", "width": SIDE, "height": SIDE})
        return identifier

    rows = []
    for at in range(number):
        reference = folder.crowds.scene(least=6)
        text, target = folder.crowds.changed(reference)
        shown = image(reference)
        truths = [image(target) for _ in range(folder.rng.randint(1, 3))]
        image(folder.crowds.changed(reference)[1])
        rows.append(
            {
                "id": at,
                "reference_img_id": shown,
                "target_img_id": truths[0],
                "relative_caption": text,
                "shared_concept": f"{NUMBERS[2]} things",
                "gt_img_ids": truths,
                "semantic_aspects": ["cardinality"],
            }
        )
    folder.put("circo/annotations/val.json", rows)
    folder.put("circo/annotations/image_info_unlabeled2017.json", {"info": {"synthetic": True}, "images": info})


def _genecis(folder: _Folder, number: int) -> None:
    """Objects: how many there are of a kind. Attributes: a thing of the picture, cut out, with its colour kept or changed."""
    count = 0

    def image(scene: Scene, attribute: bool) -> int:
        nonlocal count
        count += 1
        folder.draw(f"genecis/VG_100K_all/{count}.jpg" if attribute else f"genecis/val2017/{count:012d}.jpg", scene)
        return count

    def whole(scene: Scene) -> dict[str, Any]:
        return {"val_image_id": image(scene, attribute=False)}

    def thing(colour: str, shape: str) -> dict[str, Any]:
        scene = folder.crowds.scene()
        chosen = folder.rng.choice(scene.things)
        drawn = with_thing(scene, chosen, colour=colour, shape=shape)
        box = [chosen.column * _CELL, chosen.row * _CELL, _CELL, _CELL]
        return {"image_id": image(drawn, attribute=True), "instance_bbox": box}

    def counted(scene: Scene, shape: str, wanted: int) -> Scene:
        """With as many of this shape, and no other change."""
        things: list[Thing] = [
            replace(
                one, shape=shape if at < wanted else another("shape", shape, folder.rng) if one.shape == shape else one.shape
            )
            for at, one in enumerate(folder.rng.sample(scene.things, len(scene.things)))
        ]
        return Scene.of(things, scene.setting)

    parts: dict[str, list[dict[str, Any]]] = {
        part: [] for part in ("change_object", "focus_object", "change_attribute", "focus_attribute")
    }
    for _ in range(number // 2):
        shape = another("shape", "", folder.rng)
        scene = counted(folder.crowds.scene(), shape, 2)
        parts["change_object"].append(
            {
                "condition": f"exactly three {plural(shape)}",
                "reference": whole(scene),
                "target": whole(counted(scene, shape, 3)),
                "gallery": [whole(counted(scene, shape, at % 3)) for at in range(_GALLERY)],
            }
        )
        parts["focus_object"].append(
            {
                "condition": f"as many {plural(shape)}",
                "reference": whole(scene),
                "target": whole(counted(folder.crowds.scene(), shape, 2)),
                "gallery": [whole(counted(folder.crowds.scene(), shape, (0, 1, 3)[at % 3])) for at in range(_GALLERY)],
            }
        )
        colour, changed = another("colour", "", folder.rng), another("colour", "", folder.rng)
        others = [another("colour", changed, folder.rng) for _ in range(_GALLERY)]
        parts["change_attribute"].append(
            {
                "condition": changed,
                "reference": thing(colour, shape),
                "target": thing(changed, shape),
                "gallery": [thing(one, shape) for one in others],
            }
        )
        parts["focus_attribute"].append(
            {
                "condition": "colour",
                "reference": thing(colour, shape),
                "target": thing(colour, another("shape", shape, folder.rng)),
                "gallery": [thing(another("colour", colour, folder.rng), shape) for _ in range(_GALLERY)],
            }
        )
    for part, rows in parts.items():
        folder.put(f"genecis/annotations/{part}.json", rows)


def _visdial(folder: _Folder, number: int) -> None:
    questions: list[str] = []
    answers: list[str] = []
    dialogs = []

    def place(texts: list[str], text: str) -> int:
        if text not in texts:
            texts.append(text)
        return texts.index(text)

    for at in range(1, number + 1):
        scene = folder.crowds.scene()
        folder.draw(f"visdial/VisualDialog_val2018/VisualDialog_val2018_{at:012d}.jpg", scene)
        turns = [(place(questions, q), place(answers, a)) for q, a in dialogue(scene, folder.rng)]
        dialog = [{"question": q, "answer": a, "answer_options": [a], "gt_index": 0} for q, a in turns]
        dialogs.append({"image_id": at, "caption": f"{len(scene.things)} things", "dialog": dialog})
    data = {"questions": questions, "answers": answers, "dialogs": dialogs}
    folder.put("visdial/visdial_1.0_val.json", {"version": "1.0", "split": "val2018", "data": data})


def _vist(folder: _Folder, number: int) -> None:
    """A thing walks from place to place; the last caption says where it goes, and the pictures before it among what."""
    sentences = []
    for story in range(number):
        scene = folder.crowds.scene(most=6)
        hero = folder.rng.choice(scene.things)
        name = noun(hero, folder.rng)
        for at in range(5):
            where = CELLS[hero.cell]
            text = f"A {name} set out from the {where}." if at == 0 else f"Then it went on to the {where}."
            identifier = f"{story}{at}"
            folder.draw(f"vist/images/val/{identifier}.jpg", scene)
            sentences.append(
                [{"story_id": str(story), "text": text, "photo_flickr_id": identifier, "worker_arranged_photo_order": at}]
            )
            moved = replace(hero, cell=folder.rng.choice(scene.free_cells))
            scene, hero = Scene.of([moved if one == hero else one for one in scene.things], scene.setting), moved
    folder.put("vist/sis/val.story-in-sequence.json", {"annotations": sentences})


def _mt_fiq(folder: _Folder, number: int) -> None:
    """Two or three turns, each asking for what the last picture is to become."""
    rows: list[dict[str, Any]] = []
    pool: list[str] = []

    def image(garment: Any) -> str:
        asin = f"Z{len(pool):09d}"
        folder.draw(f"M-BEIR/mbeir_images/fashioniq_images/{asin}.jpg", draw_garment(garment, folder.rng))
        pool.append(asin)
        return asin

    for _ in range(number):
        garment = sample_garment(folder.rng)
        shown, turns = image(garment), []
        for _ in range(folder.rng.randint(2, 3)):
            edit = sample_garment_edit(garment, folder.rng, simple=0)
            turns.append(["", [edit.text], shown])
            garment = edit.target
            shown = image(garment)
        rows.append({"target": ["", shown], "reference": turns})
    folder.put("multiturnfashion/data/all.val.json", rows)
    folder.put("multiturnfashion/image_splits/split.all.val.json", pool)


def _cc_neg(folder: _Folder, number: int) -> None:
    """As `convert-cc-neg` writes it: the published file is a pickle."""
    lines = []
    for at in range(number):
        scene = folder.crowds.scene()
        folder.draw(f"ccneg/images/{at}.jpg", scene)
        caption, negative = negation(scene, folder.rng)
        lines.append(json.dumps({"image": f"images/{at}.jpg", "caption": caption, "negative": negative}) + "\n")
    folder.put("ccneg/ccneg_val.jsonl", "".join(lines))


def _sugar_crepe(folder: _Folder, number: int) -> None:
    shown = 0
    for part in PARTS:
        items: dict[str, dict[str, str]] = {}
        while len(items) < number // 2:
            scene = folder.crowds.scene()
            pair = contrast(part, scene, folder.rng)
            if pair is None:
                continue
            shown += 1
            folder.draw(f"sugar-crepe/images/val2017/{shown:012d}.jpg", scene)
            items[str(len(items))] = {"filename": f"{shown:012d}.jpg", "caption": pair[0], "negative_caption": pair[1]}
        folder.put(f"sugar-crepe/data/{part}.json", items)


_WRITERS: Final[tuple[Callable[[_Folder, int], None], ...]] = (
    *(_sharegpt4v, _urban1k, _flickr30k, _circo, _genecis),
    *(_visdial, _vist, _mt_fiq, _cc_neg, _sugar_crepe),
)
