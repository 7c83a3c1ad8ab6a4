"""Resolves a trained embedder: a run's directory, a checkpoint's (downloaded or merged), or a repository on the Hub.

A run's directory holds its settings. A checkpoint has only `embedder.json`, so the other settings that a command needs, first
of all M-BEIR's directory, are given with ``--set``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pipeline.config import load_config, settings_of
from schemas.errors import ConfigError, InputError
from schemas.os_errors import refused_by_system
from schemas.repository import is_repository_name
from schemas.training import TrainConfig
from trainer.model.metadata import METADATA, EmbedderMetadata

SETTINGS: Final = "train.json"
"""A run's settings, in its directory."""


def locate(place: Path) -> Path:
    """`place` itself if it exists, else the downloaded snapshot of the Hub repository of that name.

    Raises InputError if it is neither. HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE are honoured.
    """
    if place.exists() or not is_repository_name(str(place)):
        return place
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (reads HF_* when imported)
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    try:
        snapshot = Path(snapshot_download(str(place)))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        if (refused := refused_by_system(error)) is not None:
            raise InputError(f"{place} cannot be downloaded: {refused.cause}", f"{refused.remedy}; then run again") from error
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{place} is neither a file or directory here nor a repository that can be downloaded: {cause}",
            "name a run's directory, a config, a model's directory, or ORG/NAME on the Hub (HF_TOKEN for a private one)",
        ) from error
    if not is_checkpoint(snapshot):
        raise InputError(f"the repository {place} holds no embedder of this trainer ({METADATA})", "name another")
    return snapshot


def is_checkpoint(place: Path) -> bool:
    """Whether the directory is an embedder itself, not a run that contains some."""
    return (place / METADATA).is_file()


def checkpoint_settings(directory: Path, overrides: Sequence[str], image_roots: Sequence[Path] = ()) -> TrainConfig:
    """Settings for the use of a checkpoint. Raises ConfigError if `data.mbeir` is not among the overrides."""
    if not any(override.split("=")[0].strip() == "data.mbeir" for override in overrides):
        raise ConfigError(f"{directory} is a model and does not say where M-BEIR is", "add --set data.mbeir=DIR")
    metadata = EmbedderMetadata.read(directory)
    settings: dict[str, Any] = {
        "model": metadata.model_dump(include={"base", "revision", "max_pixels"})
        | {"pooling": metadata.pool, "bidirectional_attention": metadata.bidirectional},
        "data": {"dataset": "", "prompts": metadata.prompts},
        "out": str(directory),
        "evaluation": {"base": False},
    } | ({} if metadata.writes else {"variants": ["direct"]})
    return settings_of(settings, TrainConfig, tuple(overrides), directory, image_roots=image_roots)


def load_settings(place: Path, overrides: Sequence[str] = (), *, image_roots: Sequence[Path] = ()) -> TrainConfig:
    """From a config file, a run's directory, or a checkpoint (see `checkpoint_settings`). Raises ConfigError otherwise."""
    if is_checkpoint(place):
        return checkpoint_settings(place, overrides, image_roots)
    path = place / SETTINGS if place.is_dir() else place
    return load_config(path, TrainConfig, tuple(overrides), image_roots=image_roots)


def model_directory(settings: TrainConfig, place: Path, variant: str) -> Path:
    """The directory of that variant's embedder; `place` itself if it is a checkpoint. Raises InputError if there is none."""
    if is_checkpoint(place):
        return place
    model = (place if place.is_dir() else settings.out) / variant / "model"
    if not is_checkpoint(model):
        raise InputError(f"{model} holds no embedder", "run `mbeir-cot train` first, or name another --variant")
    return model
