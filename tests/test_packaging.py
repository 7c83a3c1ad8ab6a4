"""The packages as pyproject.toml describes them."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [pattern.removesuffix("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]


def test_every_package_is_typed_and_ships_py_typed() -> None:
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file()
        assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"][package]


def test_every_package_is_checked() -> None:
    assert set(PACKAGES) < set(PROJECT["tool"]["mypy"]["packages"])


def test_there_is_one_version() -> None:
    assert "version" not in PROJECT["project"]
    module, _, name = PROJECT["tool"]["setuptools"]["dynamic"]["version"]["attr"].rpartition(".")
    assert (
        importlib.import_module(module).__dict__[name]
        == importlib.import_module("pipeline.annotate.record_builder").__version__
    )
