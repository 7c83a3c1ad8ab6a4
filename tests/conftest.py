from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pocket.world.write import write_world
from tests.builds import Oracle


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The M-BEIR root of a small pocket world. Not to be changed: copy it first."""
    out = tmp_path_factory.mktemp("small-world") / "w"
    assert write_world(out, seed=23, train_queries=480)
    return out / "mbeir"


@pytest.fixture
def oracle(tmp_path: Path) -> Iterator[Oracle]:
    with Oracle(tmp_path / "oracle.log") as server:
        yield server
