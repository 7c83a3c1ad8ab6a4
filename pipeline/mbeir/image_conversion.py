"""What an image file shows: one rule, so that teacher, student, exports and pages see the same pixels.

orientation   a photograph is turned as its EXIF tag says
transparency  is drawn on white (alpha channels, palettes with transparent entries, a transparent colour)
depth         16-bit greys are scaled to 8, not clipped
colour        CMYK, palettes, greys and bitmaps become RGB
animation     the first frame
"""

from __future__ import annotations

import io
from typing import Any, Final, NamedTuple

import numpy as np
from PIL import ExifTags, Image

_SAME_EVERYWHERE: Final = ("RGB", "L", "1", "P")
"""Modes that every decoder turns into the same RGB, unless something in them is transparent."""
_MEDIA_TYPES: Final = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp"}
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that undoes each EXIF orientation."""


class PictureFile(NamedTuple):
    """A file's content that every decoder reads as `normalised` does."""

    content: bytes
    media_type: str


def is_plain(opened: Image.Image) -> bool:
    """Whether any decoder reads the file as `normalised` does, so that it may be passed on unchanged. Reads the header only."""
    return (
        opened.format in _MEDIA_TYPES
        and opened.mode in _SAME_EVERYWHERE
        and "transparency" not in opened.info
        and orientation(opened) == 1
        and getattr(opened, "n_frames", 1) == 1
    )


def orientation(opened: Image.Image) -> int:
    """EXIF's orientation, 1 (upright) to 8; 1 if it is missing or invalid."""
    try:
        value: Any = opened.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 (a damaged EXIF block raises anything; the picture itself may be intact)
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def normalised(opened: Image.Image) -> Image.Image:
    """The picture in RGB as everyone is to see it. Decodes it; Pillow's exceptions for damaged data pass through."""
    turn = orientation(opened)
    opened.load()
    picture = _on_white(_eight_bits(opened))
    return picture.transpose(_TURNS[turn]) if turn in _TURNS else picture


def as_file(opened: Image.Image, content: bytes) -> PictureFile:
    """`content`, which `opened` was opened from, where it is plain; else what it shows, as PNG (nothing is lost)."""
    if is_plain(opened):
        return PictureFile(content, _MEDIA_TYPES[opened.format or ""])
    buffer = io.BytesIO()
    normalised(opened).save(buffer, "PNG")
    return PictureFile(buffer.getvalue(), "image/png")


def _eight_bits(opened: Image.Image) -> Image.Image:
    """Greys of 16 bits (``I;16`` and, from files, ``I``) scaled to 8; a transparent grey becomes an alpha channel."""
    if not opened.mode.startswith("I"):
        return opened
    values = np.asarray(opened).astype(np.int64)
    scaled = Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8))
    clear = opened.info.get("transparency")
    if isinstance(clear, int):
        scaled.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return scaled


def _on_white(opened: Image.Image) -> Image.Image:
    if not opened.has_transparency_data:
        return opened.convert("RGB")
    seen = opened.convert("RGBA")
    white = Image.new("RGBA", seen.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, seen).convert("RGB")
