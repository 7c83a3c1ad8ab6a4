from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.mbeir.image_store import ImageStore
from schemas.errors import InputError
from trainer.zero_shot.suite_images import cut, open_picture
from trainer.zero_shot.tasks import Picture

WIDTH, HEIGHT = 60, 40
PIXELS = np.random.default_rng(2).integers(1, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
CASES = {
    # box: (left, top, right, bottom) of what is shown, by hand
    (20, 10, 10, 10): (13, 3, 30, 20),
    (2, 10, 10, 20): (0, 0, 17, 34),  # clipped at the left and above: the right and lower edges follow
    (50, 30, 10, 10): (43, 23, 60, 40),
    (0, 0, 60, 40): (0, 0, 60, 40),
}


@pytest.mark.parametrize("box", CASES)
def test_a_box_is_widened_clipped_and_padded_to_a_square(box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = CASES[box]
    part = PIXELS[top:bottom, left:right]
    side = max(part.shape[:2])
    square = np.zeros((side, side, 3), np.uint8)
    down, along = (side - part.shape[0]) // 2, (side - part.shape[1]) // 2
    square[down : down + part.shape[0], along : along + part.shape[1]] = part
    assert np.array_equal(np.asarray(cut(Image.fromarray(PIXELS), box)), square)


def test_pictures_are_opened_below_the_root_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    Image.fromarray(PIXELS).save(root / "a.png")
    (tmp_path / "b.png").write_bytes((root / "a.png").read_bytes())
    (root / "link.png").symlink_to(tmp_path / "b.png")
    store = ImageStore(root)
    assert np.array_equal(np.asarray(open_picture(store, Picture("a.jpg", ("a.png", "a.gif")))), PIXELS)
    assert open_picture(store, Picture("a.png", box=(20, 10, 10, 10))).size == (17, 17)
    for picture, reason in (
        (Picture("c.jpg", ("c.png",)), r"image 'c\.jpg' below .*root: image_missing"),
        (Picture("../b.png"), "image_outside_root"),
        (Picture("link.png"), "image_outside_root"),
    ):
        with pytest.raises(InputError, match=reason):
            open_picture(store, picture)
    assert open_picture(ImageStore(root, allowed_roots=(tmp_path,)), Picture("link.png")).size == (WIDTH, HEIGHT)
