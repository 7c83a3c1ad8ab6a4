"""The pixel budget in the form that a model's image processor takes.

transformers 5.23 no longer has `max_pixels` and `min_pixels`: a budget is `size`, with both edges. An edge that is not set is
the model's own, from its files. If these are not available or contain no budget, the older names are sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from schemas.hosting import ServerConfig

PROCESSOR_FILES: Final = ("preprocessor_config.json", "processor_config.json")


def processor_kwargs(config: ServerConfig) -> dict[str, Any]:
    """Arguments for the server's image processor; empty if no budget is set."""
    given = {"min_pixels": config.min_pixels, "max_pixels": config.max_pixels}
    budget = {name: value for name, value in given.items() if value is not None}
    if not budget or (own := _own_size(config)) is None:
        return budget
    longest = config.max_pixels or own[1]
    return {"size": {"shortest_edge": min(config.min_pixels or own[0], longest), "longest_edge": longest}}


def _own_size(config: ServerConfig) -> tuple[int, int] | None:
    """(fewest, most) pixels of the model's own processor."""
    for name in PROCESSOR_FILES:
        file = _file(config, name)
        if file is None:
            continue
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # reported by `model_check` or by the server
            continue
        settings = settings.get("image_processor", settings)
        size = settings.get("size") or {}
        least = settings.get("min_pixels") or size.get("shortest_edge")
        most = settings.get("max_pixels") or size.get("longest_edge")
        if isinstance(least, int) and isinstance(most, int):
            return least, most
    return None


def _file(config: ServerConfig, name: str) -> Path | None:
    """The file in the model's directory, or in the cache to which `weights` downloads it."""
    directory = Path(config.model)
    if directory.is_dir():
        return directory / name if (directory / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 (reads HF_* when imported)

    cached = try_to_load_from_cache(config.model, name, revision=config.revision)
    return Path(cached) if isinstance(cached, str) else None
