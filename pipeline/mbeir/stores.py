"""Where images may lie: every command opens M-BEIR's images through one of these.

Images are opened below the M-BEIR root and below the directories that were named beside it, where links may lead:
``input.image_roots`` of a build, ``data.image_roots`` of a training, ``--image-root`` of any command. A training on a build's
directory, and what looks at a finished build, also takes that build's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.dataset.built_dataset import FinishedDataset
from pipeline.mbeir.images import MAX_RATIO, ImageStore
from schemas.config import BuildConfig
from schemas.errors import InputError
from schemas.training import TrainConfig


def plain_store(root: Path, image_roots: Sequence[Path] = (), *, max_ratio: float | None = None) -> ImageStore:
    """For commands that are given an M-BEIR root and nothing else."""
    return ImageStore(root, allowed_roots=tuple(image_roots), max_ratio=max_ratio)


def build_store(settings: BuildConfig) -> ImageStore:
    return ImageStore(settings.mbeir, allowed_roots=settings.input.image_roots)


def training_store(config: TrainConfig) -> ImageStore:
    """What the student's processor takes: pictures that are too long for it are problems here already."""
    roots = (*config.data.image_roots, *dataset_image_roots(Path(config.data.dataset)))
    return ImageStore(config.data.mbeir, allowed_roots=roots, max_ratio=MAX_RATIO)


def dataset_image_roots(dataset: Path) -> tuple[Path, ...]:
    """Those of the build that a dataset's directory belongs to; none for a repository or a copied dataset."""
    if not dataset.is_dir():
        return ()
    try:
        settings = FinishedDataset.open(dataset).settings()
    except InputError:  # whoever reads the dataset says what is wrong with it
        return ()
    return settings.input.image_roots if settings is not None else ()
