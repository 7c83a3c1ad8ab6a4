"""Small pictures for pages and cards, as data URLs."""

from __future__ import annotations

import base64
import io
from typing import Final

from PIL import Image

from pipeline.mbeir.image_store import ImageProblem, ImageStore

SIDE: Final = 224
_QUALITY: Final = 72


class Thumbnails:
    """Maps paths below the M-BEIR root to data URLs. Pictures that cannot be used are left out."""

    def __init__(self, store: ImageStore | None, side: int = SIDE) -> None:
        self._store, self._side = store, side
        self.found: dict[str, str] = {}

    def add(self, path: str | None) -> str:
        """Adds a picture and returns its key; empty if there is none."""
        if not path or self._store is None:
            return ""
        if path not in self.found:
            try:
                picture = self._store.open(path)
            except ImageProblem:
                return ""
            self.found[path] = f"data:image/jpeg;base64,{base64.b64encode(jpeg(picture, self._side)).decode()}"
        return path


def jpeg(picture: Image.Image, side: int) -> bytes:
    """At most `side` pixels wide and high; never enlarged."""
    small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()
