"""What can be known to go wrong with a model before a server is started, from its files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from schemas.errors import ConfigError
from schemas.hosting import ServerConfig

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def check_model(config: ServerConfig) -> None:
    """Raises ConfigError with all that is wrong. A Hub repository (no such directory) is fetched by `weights`."""
    directory = Path(config.model)
    if not directory.exists():
        if config.model.startswith((".", "/", "~")) or config.model.count("/") != 1:
            raise ConfigError(
                f"no model directory {config.model!r}", "check `model`; a Hub repository is written as organisation/name"
            )
        return
    check_files(config, directory)


def check_files(config: ServerConfig, directory: Path) -> None:
    """Raises ConfigError with all that is wrong with the model in this directory."""
    problems = _problems(config, directory)
    if problems:
        raise ConfigError(
            f"the model in {directory} cannot serve as teacher: " + "; ".join(problems),
            "use a vision-language checkpoint of the Qwen2.5-VL or Qwen3-VL families with its processor files",
        )


def _problems(config: ServerConfig, directory: Path) -> list[str]:
    try:
        settings: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ["it has no config.json"]
    except (OSError, json.JSONDecodeError) as error:
        return [f"its config.json cannot be read ({error})"]
    found = []
    if "vision_config" not in settings and config.images_per_prompt:
        found.append(f"{settings.get('model_type', 'this model')} has no vision tower (no vision_config)")
    elif config.images_per_prompt and not any((directory / name).is_file() for name in _PROCESSOR_FILES):
        found.append(f"it has no image processor ({' or '.join(_PROCESSOR_FILES)})")
    if not any(directory.glob("*.safetensors")):
        found.append("it has no weights (*.safetensors)")
    if not any((directory / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        found.append("it has no tokenizer")
    text: dict[str, Any] = settings.get("text_config") or settings
    longest = text.get("max_position_embeddings")
    if isinstance(longest, int) and config.max_model_len > longest:
        found.append(f"max_model_len is {config.max_model_len}, the model ends at {longest}")
    return found
