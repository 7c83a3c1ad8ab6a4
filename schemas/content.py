"""What a query with several images is made of: texts and images in the order in which they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from schemas.errors import InputError


class ContentPart(NamedTuple):
    """A text or an image, never both. `image`: its path, relative to the root of the images."""

    text: str | None = None
    image: str | None = None


def content_parts(where: str, given: Sequence[Any] | None) -> tuple[ContentPart, ...]:
    """From a dataset's `query_parts`: objects with `text` or `image`. Raises InputError, naming `where`, for others."""
    parts = tuple(ContentPart(part.get("text"), part.get("image")) for part in given or ())
    if any(bool(part.text) == bool(part.image) for part in parts):
        raise InputError(f"{where}: a part of query_parts needs a text or an image", "give exactly one of the two")
    return parts
