"""CIRR (scenes) and FashionIQ (garments): composed retrieval. The reference and other edits of it are in the pool."""

from __future__ import annotations

import json
from typing import Any

from pocket.world.builder import LEAST_POOL, Book, Target, until
from pocket.world.draw import draw_garment, draw_scene
from pocket.world.edits import Edit, sample_edit, sample_edits
from pocket.world.garment import sample_garment
from pocket.world.garment_edits import GarmentEdit, sample_garment_edit
from pocket.world.scene import sample_scene
from schemas.mbeir import SPLITS, DatasetTask, Modality, Split

CHANGES = (1, 1, 1, 1, 1, 2, 2, 2, 3, 3)
"""Number of changes in a request about a scene, drawn from these: CIRR's requests often ask for more than one."""

ATTRIBUTES = (1, 1, 2, 2, 3)
"""Number of attributes that a request about a garment changes, drawn from these."""

NEAR_MISSES = 1
"""Other edits of the same reference in the pool, besides the reference itself."""


class _Composed:
    """Writes one dataset; pictures with equal content are stored once."""

    def __init__(self, book: Book, task: DatasetTask) -> None:
        self.book, self.task = book, task
        self.reserved = book.reserved.setdefault(task, set())
        self.seen = set(self.reserved)
        """Contents that may not be drawn again."""
        self.number = 0

    def path(self, split: Split) -> str:
        self.number += 1
        if self.task.dataset == "fashioniq":
            return f"fashioniq_images/B{self.number:09d}.jpg"
        folder = {"train": f"train/{self.number % 10}", "val": "dev", "test": "test1"}[split]
        return f"cirr_images/{folder}/{split}-{self.number:05d}.jpg"

    def candidate(self, content: Any, split: Split) -> tuple[str, str]:
        """Returns (did, image path) of a candidate with this content."""
        self.seen.add(content.canonical)
        if split != "train":
            self.reserved.add(content.canonical)
        if self.book.volume and (known := self.book.known(self.task.name, content.canonical)):
            did = known[0]  # one did for one content: another volume's would be a false negative
            return did, self.book.candidates[did]["img_path"]
        draw: Any = draw_scene if self.task.dataset == "cirr" else draw_garment
        path = self.book.image(self.path(split), draw(content, self.book.rng), content.canonical)
        source = json.dumps({"id": path.rsplit("/", 1)[1].removesuffix(".jpg")})
        did = self.book.candidate(
            self.task.dataset, Modality.IMAGE, content.canonical, pool=self.task.name, img_path=path, src_content=source
        )
        return did, path

    def sample(self) -> Any:
        """Draws a content that is not in the pool yet."""
        rng = self.book.rng
        draw: Any = sample_scene if self.task.dataset == "cirr" else sample_garment
        return until(lambda: content if (content := draw(rng)).canonical not in self.seen else None, self.task.dataset)

    def edit(self, content: Any, simple: float = 0.3) -> Edit | GarmentEdit:
        """Draws an edit whose target is not in the pool yet."""
        rng = self.book.rng

        def drawn() -> Edit | GarmentEdit | None:
            edit: Edit | GarmentEdit
            if self.task.dataset == "fashioniq":
                edit = sample_garment_edit(content, rng, simple=simple, attributes=ATTRIBUTES)
            elif rng.random() < simple:
                edit = sample_edit(content, rng, simple=1)
            elif (changes := rng.choice(CHANGES)) == 1:
                edit = sample_edit(content, rng, simple=0)
            else:
                edit = sample_edits(content, rng, changes)
            return edit if edit.target.canonical not in self.seen and edit.target != content else None

        edit: Edit | GarmentEdit = until(drawn, f"{self.task.dataset} edit")
        return edit

    def write(self) -> None:
        for split in SPLITS:
            for _ in range(self.book.count(self.task, split)):
                reference = self.sample()
                reference_did, reference_path = self.candidate(reference, split)
                edit = self.edit(reference)
                positive, _ = self.candidate(edit.target, split)
                misses = [self.candidate(self.edit(reference, simple=0).target, split)[0] for _ in range(NEAR_MISSES)]
                steps = (reference.canonical, edit.operation, edit.target.canonical) if edit.why.needs_reasoning else ()
                self.book.query(
                    split,
                    self.task,
                    Target(edit.target.canonical, edit.why, steps=steps),
                    [positive],
                    txt=edit.text,
                    img_path=reference_path,
                    negatives=[reference_did, *misses] if self.task.dataset == "cirr" else (),
                )
        while self.book.pool_size(self.task.name) < LEAST_POOL:
            self.candidate(self.sample(), "test")


def add_composed(book: Book) -> None:
    for dataset in ("fashioniq", "cirr"):
        _Composed(book, DatasetTask(dataset, 7)).write()
