"""NIGHTS: look-alikes; the same scene in another light and place, beside scenes that differ in one thing."""

from __future__ import annotations

from pocket.world.builder import LEAST_POOL, AmbiguityGuard, Book, Target, until
from pocket.world.draw import draw_scene
from pocket.world.edits import sample_edit
from pocket.world.scene import Scene, sample_scene
from schemas.mbeir import SPLITS, DatasetTask, Modality


def add_nights(book: Book) -> None:
    task, rng, number = DatasetTask("nights", 4), book.rng, 0
    admitted = AmbiguityGuard()

    def distorted(scene: Scene, place: int) -> str:
        path = f"nights_images/distort/{number // 100:03d}/{number:05d}_{place}.jpg"
        shown = book.image(path, draw_scene(scene, rng, jitter=3.0), scene.canonical)
        return book.candidate("nights", Modality.IMAGE, scene.canonical, pool=task.name, img_path=shown)

    def drawn() -> Scene | None:
        scene = sample_scene(rng, least=2)
        return scene if admitted.admits(scene) else None

    def near(scene: Scene) -> Scene | None:
        wrong = sample_edit(scene, rng, simple=0).target
        return wrong if admitted.admits(wrong) else None

    for split in SPLITS:
        for _ in range(book.count(task, split)):
            scene = until(drawn, "scene")
            number += 1
            positive = distorted(scene, 0)
            if (wrong := near(scene)) is not None:
                distorted(wrong, 1)
            reference = book.image(f"nights_images/ref/{number:05d}.jpg", draw_scene(scene, rng, jitter=0), scene.canonical)
            book.query(split, task, Target(scene.canonical), [positive], img_path=reference)
    while book.pool_size(task.name) < LEAST_POOL:
        number += 1
        distorted(until(drawn, "scene"), 0)
