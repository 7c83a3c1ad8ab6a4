"""Builds in the test's own process, which share one Ray session and so save seconds each, and faults in Ray's workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.oracle import Oracle
from pipeline.config import load_config
from schemas.config import BuildConfig
from schemas.manifest import Manifest
from tests.support.builds import digests
from tests.support.shared_ray import FAULTS, share_ray

Build = Callable[..., tuple[Manifest, bool]]
Inject = Callable[..., None]


@pytest.fixture
def build() -> Build:
    """Builds a config file and returns (manifest, whether anything was done). Raises the error that the command would print."""
    share_ray()
    from pipeline.build import build as run

    def built(config: Path, *overrides: str, **given: Any) -> tuple[Manifest, bool]:
        return run(load_config(config, BuildConfig, overrides), **given)

    return built


@pytest.fixture
def inject() -> Iterator[Inject]:
    """Arms faults by their point (see inject/sitecustomize.py); called without arguments, disarms all."""

    def arm(**faults: Any) -> None:
        FAULTS.write_text(json.dumps(faults))

    yield arm
    FAULTS.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def undisturbed(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], set[str]]:
    """An undisturbed build of 60 queries: the digests of its files, and its requests."""
    from pipeline.build import build as run

    share_ray()
    directory = tmp_path_factory.mktemp("undisturbed")
    with Oracle(directory / "oracle.log") as oracle:
        run(load_config(oracle.config(directory, small_world, input__limit=60), BuildConfig))
        return digests(directory / "out" / "dataset"), set(oracle.answered())
