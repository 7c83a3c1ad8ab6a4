from __future__ import annotations

from pathlib import Path

import pytest

from pocket.world.ground_truth import Truth, load_truth
from pocket.world.write import write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world (fewer training queries; pools and test queries as in the default one)."""
    out = tmp_path_factory.mktemp("world") / "w"
    assert write_world(out, seed=11, train_queries=320)
    return out


@pytest.fixture(scope="session")
def truth(world: Path) -> Truth:
    return load_truth(world / "truth")
