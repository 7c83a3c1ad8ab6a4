"""The image store of a training run: M-BEIR's root, and the image roots of the dataset's build."""

from __future__ import annotations

from pathlib import Path

from pipeline.dataset.built_dataset import BuiltDataset
from pipeline.mbeir.image_store import MAX_RATIO, ImageStore
from schemas.errors import InputError
from schemas.training import TrainConfig


def training_store(config: TrainConfig) -> ImageStore:
    """Pictures whose sides differ too much for the student's processor are ImageProblems."""
    roots = (*config.data.image_roots, *dataset_image_roots(Path(config.data.dataset)))
    return ImageStore(config.data.mbeir, allowed_roots=roots, max_ratio=MAX_RATIO)


def dataset_image_roots(dataset: Path) -> tuple[Path, ...]:
    """Image roots of the build that the dataset's directory belongs to; none for a repository or a copied dataset."""
    if not dataset.is_dir():
        return ()
    try:
        settings = BuiltDataset.open(dataset).settings()
    except InputError:  # the reader of the dataset reports it
        return ()
    return settings.input.image_roots if settings is not None else ()
