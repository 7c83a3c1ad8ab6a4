"""Draws the world: 128x128 pictures, drawn four times as large and reduced, legible at 64x64."""

from __future__ import annotations

import io
import math
import random
from typing import Final

from PIL import Image, ImageDraw

from pocket.world.encyclopedia import Emblem
from pocket.world.garment import Garment
from pocket.world.lexicon import COLOURS, SETTINGS
from pocket.world.scene import Scene

SIDE: Final = 128
_SCALE: Final = 3
_JPEG_QUALITY: Final = 92
_OUTLINE: Final = (96, 96, 96)

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]


class _Canvas:
    """A canvas in pixels of the finished picture; `rng` varies the background, so that no two pictures are equal."""

    def __init__(self, background: Colour, rng: random.Random) -> None:
        tone = rng.randint(-8, 8)
        self.background: Colour = tuple(max(0, min(255, channel + tone)) for channel in background)  # type: ignore[assignment]
        self.image = Image.new("RGB", (SIDE * _SCALE, SIDE * _SCALE), self.background)
        self._draw = ImageDraw.Draw(self.image)

    def rectangle(self, box: Box, fill: Colour | None, outline: Colour | None = None) -> None:
        self._draw.rectangle([value * _SCALE for value in box], fill, outline, _SCALE)

    def ellipse(self, box: Box, fill: Colour | None, outline: Colour | None = _OUTLINE) -> None:
        self._draw.ellipse([value * _SCALE for value in box], fill, outline, _SCALE)

    def polygon(self, points: list[tuple[float, float]], fill: Colour, outline: Colour | None = _OUTLINE) -> None:
        self._draw.polygon([(x * _SCALE, y * _SCALE) for x, y in points], fill, outline, _SCALE)

    def shape(self, shape: str, at: tuple[float, float], radius: float, fill: Colour, hole: Colour | None = None) -> None:
        """Draws one of the eight shapes, centred at `at`."""
        x, y = at
        r = radius
        match shape:
            case "circle":
                self.ellipse((x - r, y - r, x + r, y + r), fill)
            case "ring":
                self.ellipse((x - r, y - r, x + r, y + r), fill)
                inner = r * 0.5
                self.ellipse((x - inner, y - inner, x + inner, y + inner), hole or self.background)
            case "heart":
                top = y - r * 0.35
                half = r * 0.55
                self.polygon([(x - r, top + r * 0.12), (x + r, top + r * 0.12), (x, y + r)], fill, None)
                self.ellipse((x - r * 1.05, top - half, x + r * 0.05, top + half), fill, None)
                self.ellipse((x - r * 0.05, top - half, x + r * 1.05, top + half), fill, None)
            case _:
                self.polygon([(x + r * px, y + r * py) for px, py in _POLYGONS[shape]], fill)

    def finish(self) -> Image.Image:
        return self.image.resize((SIDE, SIDE), Image.Resampling.BOX)


def _star() -> list[tuple[float, float]]:
    points = []
    for corner in range(10):
        radius = 1.12 if corner % 2 == 0 else 0.45
        angle = math.pi * corner / 5 - math.pi / 2
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


_POLYGONS: Final[dict[str, list[tuple[float, float]]]] = {
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "triangle": [(0, -1.0), (1.05, 0.85), (-1.05, 0.85)],
    "diamond": [(0, -1.15), (0.85, 0), (0, 1.15), (-0.85, 0)],
    "star": _star(),
    "cross": [
        (-0.35, -1), (0.35, -1), (0.35, -0.35), (1, -0.35), (1, 0.35), (0.35, 0.35),
        (0.35, 1), (-0.35, 1), (-0.35, 0.35), (-1, 0.35), (-1, -0.35), (-0.35, -0.35),
    ],
}  # fmt: skip


def draw_scene(scene: Scene, rng: random.Random, *, jitter: float = 1.5) -> Image.Image:
    """Draws a scene; things stay inside their cells, at most `jitter` pixels off the centre."""
    canvas = _Canvas(SETTINGS[scene.setting], rng)
    _things(canvas, scene, rng, jitter, top=0)
    return canvas.finish()


def draw_news(scene: Scene, banner: tuple[str, str], rng: random.Random) -> Image.Image:
    """Draws a scene below a town's banner (two colours side by side along the top)."""
    canvas = _Canvas(SETTINGS[scene.setting], rng)
    height = 22
    canvas.rectangle((0, 0, SIDE / 2, height), COLOURS[banner[0]])
    canvas.rectangle((SIDE / 2, 0, SIDE, height), COLOURS[banner[1]])
    _things(canvas, scene, rng, 1.0, top=height)
    return canvas.finish()


def _things(canvas: _Canvas, scene: Scene, rng: random.Random, jitter: float, *, top: int) -> None:
    wide, high = SIDE / 3, (SIDE - top) / 3
    for thing in scene.things:
        x = (thing.column + 0.5) * wide + rng.uniform(-jitter, jitter)
        y = top + (thing.row + 0.5) * high + rng.uniform(-jitter, jitter)
        radius = min(wide, high) * (0.43 if thing.size == "large" else 0.23)
        canvas.shape(thing.shape, (x, y), radius, COLOURS[thing.colour])


def draw_emblems(
    emblems: list[Emblem], setting: str, rng: random.Random, *, places: list[tuple[float, float]] | None = None
) -> Image.Image:
    """Draws one large entity, or several side by side at `places` (fractions of the side)."""
    canvas = _Canvas(SETTINGS[setting], rng)
    radius = (SIDE * 0.36 if len(emblems) == 1 else SIDE * 0.23) * rng.uniform(0.92, 1.05)
    for emblem, (x, y) in zip(emblems, places or [(0.5, 0.5)], strict=True):
        cx, cy = x * SIDE + rng.uniform(-4, 4), y * SIDE + rng.uniform(-4, 4)
        outer = COLOURS[emblem.outer_colour]
        canvas.shape(emblem.outer, (cx, cy), radius, outer)
        drop = radius * (0.2 if emblem.outer == "triangle" else 0.0)
        canvas.shape(emblem.inner, (cx, cy + drop), radius * 0.4, COLOURS[emblem.inner_colour], hole=outer)
    return canvas.finish()


def draw_banner(banner: tuple[str, str], rng: random.Random) -> Image.Image:
    """Draws a town's banner in daylight."""
    canvas = _Canvas(SETTINGS["day"], rng)
    left, right, top, bottom = 24, 104, 28 + rng.uniform(-4, 4), 100
    canvas.rectangle((left, top, (left + right) / 2, bottom), COLOURS[banner[0]], _OUTLINE)
    canvas.rectangle(((left + right) / 2, top, right, bottom), COLOURS[banner[1]], _OUTLINE)
    return canvas.finish()


_FIGURES: Final[dict[str, list[tuple[float, float]]]] = {
    # silhouettes in a unit square, y down; the last two points of each are the hem
    "dress": [(0.38, 0.08), (0.62, 0.08), (0.64, 0.42), (0.86, 1.0), (0.14, 1.0), (0.36, 0.42)],
    "skirt": [(0.32, 0.22), (0.68, 0.22), (0.90, 1.0), (0.10, 1.0)],
    "shirt": [(0.08, 0.18), (0.92, 0.18), (0.92, 0.42), (0.74, 0.42), (0.74, 1.0), (0.26, 1.0), (0.26, 0.42), (0.08, 0.42)],
    "coat": [(0.28, 0.06), (0.72, 0.06), (0.96, 0.72), (0.80, 0.74), (0.72, 0.4), (0.80, 1.0), (0.20, 1.0), (0.28, 0.4),
             (0.20, 0.74), (0.04, 0.72)],
    "trousers": [(0.24, 0.06), (0.76, 0.06), (0.86, 1.0), (0.58, 1.0), (0.5, 0.36), (0.42, 1.0), (0.14, 1.0)],
    "hat": [(0.30, 0.30), (0.70, 0.30), (0.74, 0.74), (0.98, 0.80), (0.98, 1.0), (0.02, 1.0), (0.02, 0.80), (0.26, 0.74)],
}  # fmt: skip


def draw_garment(garment: Garment, rng: random.Random) -> Image.Image:
    """Draws a garment on a plain wall. Long ones reach further down; the trim is a band across."""
    wall = SETTINGS[rng.choice(list(SETTINGS))]
    canvas = _Canvas(tuple((channel + 2 * 225) // 3 for channel in wall), rng)  # type: ignore[arg-type]
    width = 84 if garment.kind != "trousers" else 72
    height = 110 if garment.length == "long" else 66
    left, top = (SIDE - width) / 2 + rng.uniform(-3, 3), 10 + rng.uniform(-3, 3)
    outline = [((left + x * width) * _SCALE, (top + y * height) * _SCALE) for x, y in _FIGURES[garment.kind]]
    mask = Image.new("L", canvas.image.size, 0)
    ImageDraw.Draw(mask).polygon(outline, 255)
    canvas.image.paste(_cloth(garment, canvas.image.size, top, height), (0, 0), mask)
    ImageDraw.Draw(canvas.image).polygon(outline, None, _OUTLINE, _SCALE)
    return canvas.finish()


def _cloth(garment: Garment, size: tuple[int, int], top: float, height: float) -> Image.Image:
    base = COLOURS[garment.colour]
    mark: Colour = (60, 60, 66) if sum(base) > 400 else (236, 236, 236)
    cloth = Image.new("RGB", size, base)
    pen = ImageDraw.Draw(cloth)
    step = 14 * _SCALE
    width, tall = size
    match garment.pattern:
        case "striped":
            for x in range(0, width, step):
                pen.rectangle((x, 0, x + step // 3, tall), mark)
        case "dotted":
            for row, y in enumerate(range(0, tall, step)):
                for x in range((row % 2) * step // 2, width, step):
                    pen.ellipse((x, y, x + step // 2.2, y + step // 2.2), mark)
        case "checked":
            for y in range(0, tall, step):
                for x in range((y // step % 2) * step, width, 2 * step):
                    pen.rectangle((x, y, x + step, y + step), mark)
    if garment.trim is not None:
        middle = top + height * (0.55 if garment.kind in ("shirt", "coat", "hat", "dress") else 0.32)
        pen.rectangle((0, (middle - 6) * _SCALE, width, (middle + 6) * _SCALE), COLOURS[garment.trim], _OUTLINE, _SCALE)
    return cloth


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()
