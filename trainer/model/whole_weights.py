"""An embedder as whole weights, which other engines load; an adapter is folded once and kept in the cache."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pipeline.files.atomic_directory import recover_directory, replace_directory, staging_path
from pipeline.files.locks import wait_for_lock
from pipeline.mbeir.cache import default_cache_dir
from schemas.training import TrainConfig
from trainer.model.bidirectional_attention import refuse_unservable
from trainer.model.embedder import Embedder
from trainer.model.metadata import METADATA, EmbedderMetadata, fingerprint

logger = logging.getLogger(__name__)

_LOCKS: Final = "set the environment variable MBEIR_COT_CACHE to a directory on a local disk: whole weights are kept there"


def write_weights(embedder: Embedder, directory: Path) -> None:
    """Writes whole weights, processor and metadata into an existing directory. Folds the adapter of `embedder`.

    Raises ConfigError for an embedder that other engines cannot run.
    """
    base = embedder.metadata.base
    refuse_unservable(embedder.metadata)
    # nothing is loaded from the base any more, and the directory may be made public: no path of this machine
    named = Path(base).name if Path(base).is_absolute() else base
    embedder.merged_model().save_pretrained(directory)
    embedder.processor.save_pretrained(directory)
    embedder.metadata.model_copy(update={"merged": True, "base": named}).write(directory)


def whole_weights(config: TrainConfig, model: Path | None, load: Callable[[], Embedder]) -> Path:
    """The directory of an embedder's whole weights: `model` itself if it holds some, else a copy in the cache.

    model: a checkpoint's directory; None for the untrained base. load: called if the copy has to be made. A copy is as large as
    the base and may be deleted at any time. Raises LockError if the cache's file system has no locks.
    """
    if model is not None and EmbedderMetadata.read(model).merged:
        return model
    settings = {"model": config.model.model_dump(mode="json"), "prompts": config.data.prompts, "seed": config.seed}
    made_from = {"embedder": fingerprint(model) if model is not None else None, **settings}
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:24]
    place = default_cache_dir() / "weights" / key
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("wb") as lock:
        wait_for_lock(
            lock.fileno(), place.with_suffix(".lock"), _LOCKS
        )  # workers of one machine start together; the first one writes
        recover_directory(place)
        if not (place / METADATA).is_file():
            logger.info("writes whole weights of %s to %s", model or config.model.base, place)
            new = staging_path(place)
            new.mkdir()
            write_weights(load(), new)
            replace_directory(new, place)
    return place
