"""Fashion200K: products; some are photographed twice."""

from __future__ import annotations

from pocket.world.builder import LEAST_POOL, RIDDLES, AmbiguityGuard, Book, Target, until
from pocket.world.draw import draw_garment
from pocket.world.garment import Garment, sample_garment
from pocket.world.garment_edits import sample_garment_edit
from pocket.world.language import garment_caption, garment_riddle
from pocket.world.reasoning_kinds import ReasoningKind
from schemas.mbeir import SPLITS, DatasetTask, Modality


def add_fashion200k(book: Book) -> None:
    rng, number = book.rng, 0

    def pictures(garment: Garment, count: int) -> list[str]:
        nonlocal number
        number += 1
        folder = f"fashion200k_images/{garment.kind}/{garment.colour}/{number:06d}"
        return [
            book.image(f"{folder}/{number:06d}_{n}.jpg", draw_garment(garment, rng), garment.canonical) for n in range(count)
        ]

    for task_id in (0, 3):
        task = DatasetTask("fashion200k", task_id)
        admitted = AmbiguityGuard()

        def drawn(admitted: AmbiguityGuard = admitted, task_id: int = task_id) -> tuple[Garment, str, ReasoningKind] | None:
            garment = sample_garment(rng)
            puzzling = task_id == 0 and rng.random() < RIDDLES
            said = garment_riddle(garment, rng) if puzzling else garment_caption(garment, rng)
            return (garment, said.text, said.why) if admitted.admits(garment, [said.claim]) else None

        def add(garment: Garment, text: str, count: int, task: DatasetTask = task) -> list[str]:
            if task.task_id == 3:
                return [book.candidate("fashion200k", Modality.TEXT, garment.canonical, pool=task.name, txt=text)]
            return [
                book.candidate("fashion200k", Modality.IMAGE, garment.canonical, pool=task.name, img_path=path)
                for path in pictures(garment, count)
            ]

        for split in SPLITS:
            for _ in range(book.count(task, split)):
                garment, text, why = until(drawn, "garment")
                if task_id == 0:
                    book.query(
                        split,
                        task,
                        Target(garment.canonical, why),
                        add(garment, text, 2 if rng.random() < 0.2 else 1),
                        txt=text,
                    )
                else:
                    shown = pictures(garment, 1)[0]
                    book.query(split, task, Target(garment.canonical), add(garment, text, 1), img_path=shown)
                wrong = sample_garment_edit(garment, rng, simple=0).target
                said = garment_caption(wrong, rng)
                if admitted.admits(wrong, [said.claim] if task_id == 3 else []):
                    add(wrong, said.text, 1)
        while book.pool_size(task.name) < LEAST_POOL + 40:
            garment, text, _ = until(drawn, "garment")
            add(garment, text, 1)
