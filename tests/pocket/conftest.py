from __future__ import annotations

from pathlib import Path

import pytest

from pocket.world.ground_truth import Truth, load_truth
from pocket.world.write import write_world
from tests.support.made_once import made_once


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world: fewer training queries, but the pools and test queries of the default one."""

    def write(directory: Path) -> None:
        assert write_world(directory / "w", seed=11, train_queries=320)

    return made_once(tmp_path_factory, "world", write) / "w"


@pytest.fixture(scope="session")
def truth(world: Path) -> Truth:
    return load_truth(world / "truth")
