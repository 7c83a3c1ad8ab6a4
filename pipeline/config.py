"""Config files: YAML into validated settings, with errors that name the key and the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from schemas.errors import ConfigError
from schemas.os_errors import explained, refused_by_system
from schemas.renamed import RENAMED

Settings = TypeVar("Settings", bound=BaseModel)


def load_config(
    path: Path, model: type[Settings], overrides: tuple[str, ...] = (), *, image_roots: Sequence[Path] = ()
) -> Settings:
    """Reads `path` as `model`; `overrides` are ``key.sub=value`` with YAML values. Raises ConfigError with all problems.

    image_roots: added to those of the config.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        refused = refused_by_system(error)
        raise ConfigError(
            f"cannot read the config {path}: {explained(error).cause}",
            refused.remedy if refused else "see configs/ for examples",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start})", "save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}", "correct the file") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} contains no settings", "a config is a mapping of keys to values; see configs/")
    return settings_of(data, model, overrides, path, image_roots=image_roots)


def settings_of(
    data: dict[str, Any], model: type[Settings], overrides: tuple[str, ...], path: Path, *, image_roots: Sequence[Path] = ()
) -> Settings:
    """Validates `data` with the overrides as `model`; errors name `path`."""
    for override in overrides:
        _set(data, override)
    if image_roots:
        _add_image_roots(data, "data" if "data" in model.model_fields else "input", image_roots)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = "\n".join(f"  {_described(item, model)}" for item in error.errors(include_url=False))
        raise ConfigError(f"{path} has settings that do not fit:\n{problems}", "correct these keys; see configs/") from None


def _set(data: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override!r} is not of the form key=value", "e.g. --set teacher.sampling.temperature=0.7")
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {key}: {parent} has no further keys", "name an existing key")
    try:
        data[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: its value is not YAML ({error})", "put quotes around it") from error


def _add_image_roots(data: dict[str, Any], section: str, roots: Sequence[Path]) -> None:
    settings = data.setdefault(section, {})
    if isinstance(settings, dict) and isinstance(settings.get("image_roots") or [], list):  # else validation fails anyway
        settings["image_roots"] = [*(settings.get("image_roots") or []), *map(str, roots)]


def _described(item: Any, model: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden" and key in RENAMED:
        return f"{key}: is called {RENAMED[key]} now"
    if item["type"] == "extra_forbidden":
        known = _keys_beside(model, item["loc"])
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.5)
        return f"{key}: unknown key" + (f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}")
    if item["type"] == "missing":
        return f"{key}: missing"
    message = item["msg"].removeprefix("Value error, ")
    return f"{key or 'the config'}: {message}" + ("" if item["type"] == "value_error" else f" (it is {item['input']!r})")


def _keys_beside(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The known keys beside an unknown one."""
    current: type[BaseModel] | None = model
    for part in location[:-1]:
        if isinstance(part, str) and current is not None and part in current.model_fields:
            current = _model_in(current.model_fields[part].annotation)
    return sorted(current.model_fields) if current is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for inner in get_args(annotation) if (model := _model_in(inner)) is not None), None)
