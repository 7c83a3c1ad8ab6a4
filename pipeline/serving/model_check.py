"""Checks a model's files for known problems before a server is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.serving.pixel_budget import PROCESSOR_FILES
from schemas.errors import ConfigError
from schemas.hosting import ServerConfig
from schemas.os_errors import explained


def check_model(config: ServerConfig) -> None:
    """Raises ConfigError with all that is wrong. A Hub repository (no such directory) is fetched by `weights`."""
    directory = Path(config.model)
    if not directory.exists():
        if config.model.startswith((".", "/", "~")) or config.model.count("/") != 1:
            raise ConfigError(
                f"no model directory {config.model!r}", "check `model`; a Hub repository is written as organisation/name"
            )
        if "internvl" in config.model.lower():  # before it is fetched
            _refuse(config.model, _tiled(config, "" if config.model.endswith("-hf") else "internvl_chat"))
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
    kind = _settings(directory).get("model_type")
    if kind in ("internvl_chat", "internvl"):
        _refuse(str(directory), _tiled(config, kind))


def _refuse(model: str, tiled: tuple[str, str] | None) -> None:
    if tiled is not None:
        raise ConfigError(f"{model}: {tiled[0]}", tiled[1])


def _tiled(config: ServerConfig, kind: str) -> tuple[str, str] | None:
    """(problem, remedy) of settings with which an InternVL does not start, or makes more tokens of an image than fit.

    Its processor silently ignores a pixel budget: it cuts an image into up to 12 tiles of 256 tokens and a thumbnail.
    """
    own_code = kind == "internvl_chat"
    if own_code and not config.trust_remote_code:
        return (
            "this InternVL needs code from its repository",
            "use the variant whose name ends with -hf, or read that code and set server.trust_remote_code",
        )
    if config.max_pixels is not None or not any("patch" in argument for argument in config.extra_args):
        tiles = "max_dynamic_patch" if own_code else "max_patches"
        set_tiles = f"[--mm-processor-kwargs, '{{\"{tiles}\": 4}}']"
        return (
            "InternVL ignores the pixel budget: two images may take 6,600 tokens",
            f"set server.max_pixels: null and server.extra_args: {set_tiles} (4 tiles and a thumbnail take 1,280 tokens)",
        )
    return None


def _settings(directory: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return settings


def _problems(config: ServerConfig, directory: Path) -> list[str]:
    try:
        settings = _settings(directory)
    except FileNotFoundError:
        return ["it has no config.json"]
    except OSError as error:
        cause, remedy = explained(error)
        return [f"its config.json cannot be read: {cause} ({remedy})"]
    except ValueError as error:
        return [f"its config.json cannot be read ({error})"]
    problems = []
    if "vision_config" not in settings and config.images_per_prompt:
        problems.append(f"{settings.get('model_type', 'this model')} has no vision tower (no vision_config)")
    elif config.images_per_prompt and not any((directory / name).is_file() for name in PROCESSOR_FILES):
        problems.append(f"it has no image processor ({' or '.join(PROCESSOR_FILES)})")
    if not any(directory.glob("*.safetensors")):
        problems.append("it has no weights (*.safetensors)")
    if not any((directory / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        problems.append("it has no tokenizer")
    text: dict[str, Any] = settings.get("text_config") or settings
    longest = text.get("max_position_embeddings")
    if isinstance(longest, int) and config.max_model_len > longest:
        problems.append(f"max_model_len is {config.max_model_len}, but the model ends at {longest}")
    return problems
