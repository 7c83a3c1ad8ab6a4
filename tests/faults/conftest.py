"""Builds of this process, which share one Ray: a build in a process of its own costs seconds more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_config
from schemas.config import BuildConfig
from schemas.manifest import Manifest

Build = Callable[..., tuple[Manifest, bool]]


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[None]:
    import ray

    from pipeline.teacher.hosting.pool import start_ray

    before = ray.is_initialized()
    start_ray()
    yield
    if not before:
        ray.shutdown()


@pytest.fixture
def build(shared_ray: None) -> Build:
    """Builds a config file: (manifest, whether anything was done). Raises what the command would print."""
    from pipeline.build import build as run

    def built(config: Path, *overrides: str, **given: Any) -> tuple[Manifest, bool]:
        return run(load_config(config, BuildConfig, overrides), quiet=True, **given)

    return built
