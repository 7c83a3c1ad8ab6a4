"""Image stores: every command opens M-BEIR's images through one of them.

Images are opened below the M-BEIR root and below further directories that links may point into: a build's
``input.image_roots``, a training run's ``data.image_roots``, a command's ``--image-root``. Training on a build's directory, and
commands that inspect a finished build, also use that build's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.mbeir.image_store import ImageStore
from schemas.config import BuildConfig


def plain_store(root: Path, image_roots: Sequence[Path] = (), *, max_ratio: float | None = None) -> ImageStore:
    """The store of commands that are given only an M-BEIR root."""
    return ImageStore(root, allowed_roots=tuple(image_roots), max_ratio=max_ratio)


def media_store(root: Path, *, max_pixels: int, max_ratio: float) -> ImageStore:
    """The store of a directory that requests of the embedding service may name files of, with the service's limits."""
    return ImageStore(root, max_pixels=max_pixels, max_ratio=max_ratio)


def build_store(settings: BuildConfig) -> ImageStore:
    return ImageStore(settings.mbeir, allowed_roots=settings.input.image_roots)
