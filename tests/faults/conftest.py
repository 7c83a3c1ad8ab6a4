"""Builds in the test's own process, which share one Ray session and so save seconds each, and faults in Ray's workers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.oracle import Oracle
from pipeline.config import load_config
from schemas.config import BuildConfig
from schemas.manifest import Manifest
from tests.support.builds import ROOT, digests

Build = Callable[..., tuple[Manifest, bool]]
Inject = Callable[..., None]


@pytest.fixture(scope="session")
def faults_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Ray session whose workers read their faults from this file."""
    import ray

    from pipeline.serving.ray_session import start_ray

    if ray.is_initialized():
        ray.shutdown()
    file = tmp_path_factory.mktemp("faults") / "faults.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MBEIR_COT_FAULTS", str(file))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests" / "faults" / "inject"), str(ROOT)]))
        patch.delenv("RAY_ADDRESS", raising=False)
        start_ray()
        yield file
        ray.shutdown()


@pytest.fixture
def build(faults_file: Path) -> Build:
    """Builds a config file and returns (manifest, whether anything was done). Raises the error that the command would print."""
    from pipeline.build import build as run

    def built(config: Path, *overrides: str, **given: Any) -> tuple[Manifest, bool]:
        return run(load_config(config, BuildConfig, overrides), quiet=True, **given)

    return built


@pytest.fixture
def inject(faults_file: Path) -> Iterator[Inject]:
    """Arms faults by their point (see inject/sitecustomize.py); called without arguments, disarms all."""

    def arm(**faults: Any) -> None:
        faults_file.write_text(json.dumps(faults))

    yield arm
    faults_file.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def undisturbed(
    small_world: Path, tmp_path_factory: pytest.TempPathFactory, faults_file: Path
) -> tuple[dict[str, str], set[str]]:
    """An undisturbed build of 60 queries: the digests of its files, and its requests."""
    from pipeline.build import build as run

    directory = tmp_path_factory.mktemp("undisturbed")
    with Oracle(directory / "oracle.log") as oracle:
        run(load_config(oracle.config(directory, small_world, input__limit=60), BuildConfig), quiet=True)
        return digests(directory / "out" / "dataset"), set(oracle.answered())
