"""Draws a contact sheet of an M-BEIR directory: one query of each dataset-task with its positive."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from pipeline.mbeir.candidates import CandidateLookup
from pipeline.mbeir.image_store import ImageStore
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.queries import read_queries
from pipeline.mbeir.stores import plain_store
from schemas.mbeir import DATASET_TASKS, DatasetTask

_PICTURE: Final = 96
_ROW: Final = _PICTURE + 14
_COLUMN: Final = 560
_INK, _PAPER, _GREY = (30, 30, 36), (255, 255, 255), (120, 120, 130)


def draw_sheet(root: Path, cache_dir: Path | None = None, *, skip: int = 1, image_roots: Sequence[Path] = ()) -> Image.Image:
    """Draws query number `skip` of each test file beside its first positive, in two columns."""
    rows = list(_rows(Layout.open(root), plain_store(root, image_roots), cache_dir, skip))
    half = (len(rows) + 1) // 2
    sheet = Image.new("RGB", (2 * _COLUMN, half * _ROW + 8), _PAPER)
    for number, row in enumerate(rows):
        sheet.paste(row, (number // half * _COLUMN, number % half * _ROW + 8))
    return sheet


def _rows(layout: Layout, store: ImageStore, cache_dir: Path | None, skip: int) -> Iterator[Image.Image]:
    with CandidateLookup(layout, cache_dir) as lookup:
        for task in DATASET_TASKS:
            path = layout.queries("test", task)
            if not path.is_file():
                continue
            query = [query for _, query in read_queries(path)][skip]
            (positive,) = lookup.first_held(task, "test", [query.pos_cand_list])
            if positive is None:
                continue
            shown = [store.open(name) if name else None for name in (query.query_img_path, positive.img_path)]
            yield _row(task, (shown[0], query.query_txt), (shown[1], positive.txt))


def _row(
    task: DatasetTask, query: tuple[Image.Image | None, str | None], positive: tuple[Image.Image | None, str | None]
) -> Image.Image:
    row = Image.new("RGB", (_COLUMN, _ROW), _PAPER)
    pen = ImageDraw.Draw(row)
    for (picture, text), left, label in ((query, 8, task.name), (positive, _COLUMN // 2 + 14, "positive")):
        x, width = left, 32
        if picture is not None:
            row.paste(picture.resize((_PICTURE, _PICTURE), Image.Resampling.LANCZOS), (x, 6))
            x, width = x + _PICTURE + 6, 21
        pen.text((x, 4), label, _GREY, ImageFont.load_default(11))
        pen.text((x, 20), textwrap.fill(text or "", width), _INK, ImageFont.load_default(12))
    pen.text((_COLUMN // 2 - 8, _ROW // 2 - 8), ">", _GREY, ImageFont.load_default(16))
    return row
