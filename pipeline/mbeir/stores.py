"""Where images may lie: every command opens M-BEIR's images through one of these stores.

Images are opened below the M-BEIR root and below the directories that were named beside it, where links may lead:
``input.image_roots`` of a build, ``data.image_roots`` of a training, ``--image-root`` of any command. A training on a build's
directory, and what looks at a finished build, also takes that build's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.mbeir.images import ImageStore
from schemas.config import BuildConfig


def plain_store(root: Path, image_roots: Sequence[Path] = (), *, max_ratio: float | None = None) -> ImageStore:
    """For commands that are given an M-BEIR root and nothing else."""
    return ImageStore(root, allowed_roots=tuple(image_roots), max_ratio=max_ratio)


def build_store(settings: BuildConfig) -> ImageStore:
    return ImageStore(settings.mbeir, allowed_roots=settings.input.image_roots)
