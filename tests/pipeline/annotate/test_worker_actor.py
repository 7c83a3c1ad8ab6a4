"""Errors of a worker that is being made reach the driver as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.oracle import Oracle
from pipeline.annotate.worker_actor import WorkerActor
from pipeline.config import load_config
from pipeline.serving.environ import carried
from schemas.config import BuildConfig
from schemas.errors import CotError
from tests.support.shared_ray import share_ray


def given(small_world: Path, tmp_path: Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What makes a worker whose ledger's directory is a file."""
    oracle = Oracle(tmp_path / "oracle.log")  # never started
    config = load_config(oracle.config(tmp_path, small_world, input__limit=2), BuildConfig)
    (tmp_path / "ledger").touch()
    logs = tmp_path / "logs"
    logs.mkdir()
    return (config, str(tmp_path / "ledger")), {"alone": False, "environment": carried([]), "log": logs / "worker-0.log"}


async def test_a_worker_that_cannot_be_made(small_world: Path, tmp_path: Path) -> None:
    arguments, options = given(small_world, tmp_path)
    actor = WorkerActor(*arguments, **options)
    for _ in range(2):
        with pytest.raises(CotError, match="cannot create the ledger's directory"):
            await actor.annotate([])
        (tmp_path / "ledger").unlink(missing_ok=True)  # which would mend it: but calls that wait do not try one by one
    await actor.drain()
    await actor.close()


@pytest.mark.slow
def test_a_worker_that_cannot_be_made_on_another_node(small_world: Path, tmp_path: Path) -> None:
    import ray

    from pipeline.annotate.dispatcher import _result

    share_ray()
    arguments, options = given(small_world, tmp_path)
    actor = ray.remote(WorkerActor).options(max_restarts=2, max_task_retries=2).remote(*arguments, **options)  # type: ignore[attr-defined]
    with pytest.raises(CotError, match="cannot create the ledger's directory"):
        _result(actor.annotate.remote([]))
    ray.kill(actor)
