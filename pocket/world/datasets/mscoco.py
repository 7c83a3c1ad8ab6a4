"""MSCOCO: everyday scenes; five captions per picture, pools per split, training candidates in the global pool only."""

from __future__ import annotations

from typing import Final

from pocket.world.builder import LEAST_POOL, RIDDLES, AmbiguityGuard, Book, Target, until
from pocket.world.draw import draw_scene
from pocket.world.edits import sample_edit
from pocket.world.language import Utterance, aside, caption, riddle
from pocket.world.scene import Scene, sample_scene
from schemas.mbeir import SPLITS, DatasetTask, Modality, Split

CAPTIONS: Final = 5
"""Captions per picture, as in MSCOCO."""


def add_mscoco(book: Book) -> None:
    rng, number = book.rng, 0

    def picture(scene: Scene, split: Split) -> str:
        nonlocal number
        number += 1
        folder = "train2014" if split == "train" else "val2014"
        return book.image(f"mscoco_images/{folder}/COCO_{folder}_{number:012d}.jpg", draw_scene(scene, rng), scene.canonical)

    for split in SPLITS:
        task = DatasetTask("mscoco", 0)
        pool = None if split == "train" else f"{task.name}_{split}"
        admitted = AmbiguityGuard()

        def drawn(admitted: AmbiguityGuard = admitted) -> tuple[Scene, Utterance] | None:
            scene = sample_scene(rng, least=2)
            said = (riddle(scene, rng) if rng.random() < RIDDLES else None) or caption(scene, rng)
            said = Utterance(aside(said.text, rng), said.claim, said.why)
            return (scene, said) if admitted.admits(scene, [said.claim]) else None

        def near(scene: Scene, admitted: AmbiguityGuard = admitted) -> Scene | None:
            wrong = sample_edit(scene, rng, simple=0).target
            return wrong if admitted.admits(wrong) else None

        for _ in range(book.count(task, split)):
            scene, said = until(drawn, "scene")
            did = book.candidate("mscoco", Modality.IMAGE, scene.canonical, pool=pool, img_path=picture(scene, split))
            book.query(split, task, Target(scene.canonical, said.why), [did], txt=said.text)
            wrong = near(scene)
            if wrong is not None and pool is not None:
                book.candidate("mscoco", Modality.IMAGE, wrong.canonical, pool=pool, img_path=picture(wrong, split))
        while pool is not None and book.pool_size(pool) < LEAST_POOL:
            scene, _ = until(drawn, "scene")
            book.candidate("mscoco", Modality.IMAGE, scene.canonical, pool=pool, img_path=picture(scene, split))

    for split in SPLITS:
        task = DatasetTask("mscoco", 3)
        pool = None if split == "train" else f"{task.name}_{split}"
        admitted = AmbiguityGuard()

        def captioned(admitted: AmbiguityGuard = admitted) -> tuple[Scene, list[str]] | None:
            scene = sample_scene(rng, least=2)
            said = [caption(scene, rng) for _ in range(CAPTIONS)]
            if not admitted.admits(scene, [s.claim for s in said]):
                return None
            return scene, [aside(s.text, rng) for s in said]

        def add(scene: Scene, texts: list[str], pool: str | None = pool) -> list[str]:
            return [book.candidate("mscoco", Modality.TEXT, scene.canonical, pool=pool, txt=text) for text in texts]

        for _ in range(book.count(task, split)):
            scene, texts = until(captioned, "captioned scene")
            book.query(split, task, Target(scene.canonical), add(scene, texts), img_path=picture(scene, split))
        while pool is not None and book.pool_size(pool) < LEAST_POOL * CAPTIONS - 200:
            add(*until(captioned, "captioned scene"))
