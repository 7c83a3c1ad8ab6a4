"""Images of every kind that decoders read differently, with the expected pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from PIL import ExifTags, Image

WIDTH, HEIGHT = 24, 16
_RNG = np.random.default_rng(5)
COLOURS: Final = np.repeat(np.repeat(_RNG.integers(0, 256, (4, 6, 3)), 4, 0), 4, 1).astype(np.uint8)
"""Blocks of one colour, (HEIGHT, WIDTH, 3), which JPEG changes little."""
_GREYS: Final = COLOURS[..., 0]
_CLEAR: Final = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 3 == 0


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes()


def _turned(orientation: int) -> Image.Image:
    """Returns the stored pixels of a camera that was held so that `orientation` turns them upright."""
    undo = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
        8: "ROTATE_270",
    }
    return Image.fromarray(COLOURS).transpose(Image.Transpose[undo[orientation]])


def _white_where_clear(colours: np.ndarray) -> np.ndarray:
    return np.where(_CLEAR[..., None], 255, colours).astype(np.uint8)


def _rgba() -> Image.Image:
    return Image.fromarray(np.dstack([COLOURS, np.where(_CLEAR, 0, 255).astype(np.uint8)]))


def _half_seen() -> tuple[Image.Image, np.ndarray]:
    picture = Image.fromarray(np.dstack([COLOURS, np.full((HEIGHT, WIDTH), 128, np.uint8)]))
    return picture, np.round(COLOURS * (128 / 255) + 255 * (127 / 255)).astype(np.uint8)


def _palette(clear: int | None) -> tuple[Image.Image, np.ndarray]:
    picture = Image.fromarray(COLOURS).quantize(24)
    shown = np.asarray(picture.convert("RGB")).copy()
    if clear is not None:
        shown[np.asarray(picture) == clear] = 255
    return picture, shown


def _greys(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, 2).astype(np.uint8)


def _sixteen() -> Image.Image:
    return Image.fromarray(_GREYS.astype(np.uint16) * 257)


def write_pictures(folder: Path) -> dict[str, tuple[np.ndarray, int, bool]]:
    """Writes the images. Returns file name -> (expected pixels, tolerance for a lossy format, whether the file is plain)."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, tuple[np.ndarray, int, bool]] = {}

    def add(name: str, picture: Image.Image, shown: np.ndarray, *, off: int = 0, plain: bool = False, **how: object) -> None:
        picture.save(folder / name, **how)
        found[name] = shown, off, plain

    lossy: dict[str, object] = {"quality": 100, "subsampling": 0}
    colours = Image.fromarray(COLOURS)
    add("plain.jpg", colours, COLOURS, off=6, plain=True, **lossy)
    add("upright.jpg", colours, COLOURS, off=6, plain=True, exif=_exif(1), **lossy)
    for orientation in range(2, 9):
        add(f"turned{orientation}.jpg", _turned(orientation), COLOURS, off=6, exif=_exif(orientation), **lossy)
    add("turned.png", _turned(6), COLOURS, exif=_exif(6))
    add("turned.webp", _turned(8), COLOURS, exif=_exif(8), lossless=True)
    add("nonsense.jpg", colours, COLOURS, off=6, plain=True, exif=_exif(77), **lossy)
    add("cmyk.jpg", colours.convert("CMYK"), COLOURS, off=6, **lossy)
    add("plain.png", colours, COLOURS, plain=True)
    add("plain.bmp", colours, COLOURS, plain=True)
    add("grey.png", Image.fromarray(_GREYS), _greys(_GREYS), plain=True)
    add("bits.png", Image.fromarray(_CLEAR), _greys(_CLEAR * 255), plain=True)
    add("clear.png", _rgba(), _white_where_clear(COLOURS))
    add("clear.webp", _rgba(), _white_where_clear(COLOURS), lossless=True)
    add("half.png", *_half_seen(), off=1)
    add(
        "grey-clear.png",
        _rgba().convert("LA"),
        _white_where_clear(np.asarray(colours.convert("RGB").convert("L").convert("RGB"))),
    )
    add("palette.png", *_palette(None), plain=True)
    add("palette-clear.png", *_palette(3), transparency=3)
    add("palette-clear.gif", *_palette(3), transparency=3)
    add(
        "colour-clear.png",
        colours,
        np.where((COLOURS[0, 0] == COLOURS).all(-1)[..., None], 255, COLOURS),
        transparency=tuple(int(v) for v in COLOURS[0, 0]),
    )
    add("sixteen.png", _sixteen(), _greys(_GREYS))
    first = int(_GREYS[0, 0]) * 257
    add("sixteen-clear.png", _sixteen(), _greys(np.where(_GREYS[0, 0] == _GREYS, 255, _GREYS)), transparency=first)
    add("moving.gif", _palette(None)[0], _palette(None)[1], save_all=True, append_images=[Image.new("P", (WIDTH, HEIGHT))])
    return found


def assert_seen(what: str, seen: Image.Image, shown: np.ndarray, off: int) -> None:
    pixels = np.asarray(seen).astype(int)
    assert seen.mode == "RGB", f"{what}: {seen.mode}"
    assert pixels.shape == shown.shape, f"{what}: {pixels.shape}"
    assert np.abs(pixels - shown).max() <= off, f"{what}: {np.abs(pixels - shown).max()} off"
