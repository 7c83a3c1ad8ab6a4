"""The image store of a training: M-BEIR's root, and what the dataset's build was allowed to read."""

from __future__ import annotations

from pathlib import Path

from pipeline.dataset.built_dataset import BuiltDataset
from pipeline.mbeir.images import MAX_RATIO, ImageStore
from schemas.errors import InputError
from schemas.training import TrainConfig


def training_store(config: TrainConfig) -> ImageStore:
    """What the student's processor takes: pictures that are too long for it are problems here already."""
    roots = (*config.data.image_roots, *dataset_image_roots(Path(config.data.dataset)))
    return ImageStore(config.data.mbeir, allowed_roots=roots, max_ratio=MAX_RATIO)


def dataset_image_roots(dataset: Path) -> tuple[Path, ...]:
    """Those of the build that a dataset's directory belongs to; none for a repository or a copied dataset."""
    if not dataset.is_dir():
        return ()
    try:
        settings = BuiltDataset.open(dataset).settings()
    except InputError:  # whoever reads the dataset says what is wrong with it
        return ()
    return settings.input.image_roots if settings is not None else ()
