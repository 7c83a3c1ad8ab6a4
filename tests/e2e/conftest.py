from __future__ import annotations

from pathlib import Path

import pytest

from bench.oracle import Oracle
from tests.support.builds import built


@pytest.fixture(scope="session")
def finished(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Oracle]:
    """An undisturbed build: its directory, its config, its teacher."""
    directory = tmp_path_factory.mktemp("finished")
    with Oracle(directory / "oracle.log") as oracle:
        config = oracle.config(directory, small_world)
        built(config)
    return directory / "out", config, oracle
