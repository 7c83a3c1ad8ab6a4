"""Where a trained embedder is: a run's directory, a checkpoint's (downloaded or merged), or a repository on the Hub.

A run has its settings in it. A checkpoint has its identity alone (`embedder.json`), so what else a command needs, M-BEIR's
directory first, is given with ``--set``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pipeline.config import load_config, settings_of
from schemas.errors import ConfigError, InputError
from schemas.training import TrainConfig
from trainer.model.embedder import IDENTITY, Identity

SETTINGS: Final = "train.json"
"""In a run's directory: all its settings."""
_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+").fullmatch


def located(place: Path) -> Path:
    """`place` itself where it is here, else the snapshot of the Hub's repository of that name.

    Raises InputError for what is neither. HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE are honoured.
    """
    if place.exists() or not _REPOSITORY(str(place)):
        return place
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (reads HF_* when imported)
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    try:
        found = Path(snapshot_download(str(place)))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{place} is no file or directory here, and no repository that can be downloaded: {said}",
            "name a run's directory, a config, a model's directory, or ORG/NAME on the Hub (HF_TOKEN for a private one)",
        ) from error
    if not is_checkpoint(found):
        raise InputError(f"the repository {place} holds no embedder of this trainer ({IDENTITY})", "name another")
    return found


def is_checkpoint(place: Path) -> bool:
    """Whether the directory is an embedder itself, and no run with some in it."""
    return (place / IDENTITY).is_file()


def checkpoint_settings(directory: Path, overrides: Sequence[str], image_roots: Sequence[Path] = ()) -> TrainConfig:
    """Settings for using a checkpoint. Raises ConfigError where `data.mbeir` is not among the overrides."""
    if not any(one.split("=")[0].strip() == "data.mbeir" for one in overrides):
        raise ConfigError(f"{directory} is a model and does not say where M-BEIR is", "add --set data.mbeir=DIR")
    identity = Identity.read(directory)
    known: dict[str, Any] = {
        "model": identity.model_dump(include={"base", "revision", "max_pixels"}) | {"pooling": identity.pool},
        "data": {"dataset": "", "prompts": identity.prompts},
        "out": str(directory),
        "evaluation": {"base": False},
    }
    return settings_of(known, TrainConfig, tuple(overrides), directory, image_roots=image_roots)


def load_settings(place: Path, overrides: Sequence[str] = (), *, image_roots: Sequence[Path] = ()) -> TrainConfig:
    """Of a config file, a run's directory, or a checkpoint (see `checkpoint_settings`). Raises ConfigError for others."""
    if is_checkpoint(place):
        return checkpoint_settings(place, overrides, image_roots)
    path = place / SETTINGS if place.is_dir() else place
    return load_config(path, TrainConfig, tuple(overrides), image_roots=image_roots)


def model_directory(settings: TrainConfig, place: Path, variant: str) -> Path:
    """The embedder of that variant: `place` itself if it is a checkpoint. Raises InputError where there is none."""
    if is_checkpoint(place):
        return place
    model = (place if place.is_dir() else settings.out) / variant / "model"
    if not is_checkpoint(model):
        raise InputError(f"{model} holds no embedder", "run `mbeir-cot train` first, or name another --variant")
    return model
