"""Pictures of the suite, opened through the project's `ImageStore`."""

from __future__ import annotations

from typing import Final

from PIL import Image

from pipeline.mbeir.image_store import ImageProblem, ImageStore
from schemas.errors import InputError
from schemas.record import ImageReason
from trainer.zero_shot.tasks import Picture

_DILATION: Final = 0.7


def find(store: ImageStore, picture: Picture) -> str:
    """The first of the picture's names that is there. Raises ImageProblem, of its first name."""
    for path in (picture.path, *picture.others):
        try:
            store.resolve(path)
        except ImageProblem as problem:
            if problem.reason is not ImageReason.MISSING:
                raise
        else:
            return path
    raise ImageProblem(ImageReason.MISSING, picture.path, "no such file below the root")


def open_picture(store: ImageStore, picture: Picture) -> Image.Image:
    """The picture in RGB, cut where it has a box. Raises InputError that names the file and what it lacks."""
    try:
        image = store.open(find(store, picture))
    except ImageProblem as problem:
        raise InputError(
            f"image {problem.path!r} below {store.root}: {problem.reason}",
            "`mbeir-cot zero-shot check ROOT` lists what is missing; docs/zero-shot.md says where the images come from",
        ) from problem
    return image if picture.box is None else cut(image, picture.box)


def cut(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """The object in the box (left, top, width, height) and its surroundings, padded with black to a square.

    As GeneCIS does it: the left and upper edges go outward by 0.7 of the box's side, and the part is 1.7 sides wide from there,
    clipped to the image. So what it shows of the right and lower surroundings depends on the clipping at the left and above.
    """
    left, top, width, height = box
    left, top = max(0.0, left - _DILATION * width), max(0.0, top - _DILATION * height)
    right, bottom = min(image.width, left + (1 + _DILATION) * width), min(image.height, top + (1 + _DILATION) * height)
    part = image.crop((left, top, right, bottom))  # Pillow rounds; so in the reference
    side = max(part.size)
    if part.width == part.height:
        return part
    square = Image.new(part.mode, (side, side))
    # the reference halves the difference and drops the rest
    square.paste(part, ((side - part.width) // 2, (side - part.height) // 2))
    return square
