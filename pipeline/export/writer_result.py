"""What a writer returns beside its files: counts, the dataset's header, and text for the README."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from pipeline.export.samples import Sample
from pipeline.mbeir.image_store import ImageStore, picture_value


@dataclass(frozen=True, slots=True)
class Written:
    """count: records. header: YAML for the README's header. remarks: lines for the README on the files' content.
    files: further text files by name; OUT in them is replaced by the directory's name."""

    count: int
    header: str = ""
    remarks: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)


Writer = Callable[[Iterable[Sample], ImageStore, Path, int], Written]
"""(samples, M-BEIR's images, empty directory, hard negatives asked for) -> what was written."""

IMAGE: Final = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""An image as `datasets.Image` stores it in Arrow."""
IMAGE_FEATURE: Final = {"_type": "Image"}


def picture(images: ImageStore, path: str) -> tuple[dict[str, Any], int]:
    """A picture as an `IMAGE` that every decoder reads alike, and its size in bytes."""
    value = picture_value(images, path)
    return value, len(value["bytes"])
