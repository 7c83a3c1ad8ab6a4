"""Unexpected errors in a worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.oracle import Oracle
from pipeline.annotate.worker import AnnotationWorker
from pipeline.config import load_config
from pipeline.ledger.ledger import LedgerError
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.work_list import collect
from schemas.config import BuildConfig


@pytest.fixture
def config(small_world: Path, tmp_path: Path, oracle: Oracle) -> BuildConfig:
    return load_config(oracle.config(tmp_path, small_world, input__limit=12), BuildConfig)


def items(config: BuildConfig, tmp_path: Path) -> Any:
    work = collect(Layout.open(config.mbeir), config.input, rejects=tmp_path / "malformed.jsonl")
    return work.read(0, len(work))


async def test_a_bug_costs_one_query(config: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotator = AnnotationWorker(config, None)
    given = items(config, tmp_path)
    calls = 0

    async def annotate(annotation: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ZeroDivisionError("nobody thought of this")
        annotation.route = "bypass"
        return annotation

    monkeypatch.setattr(annotator.annotator, "annotate", annotate)
    chunk = await annotator.annotate(given)
    await annotator.close()
    assert chunk is not None
    (refused,) = chunk.rejections.to_pylist()
    assert refused["reason"] == "internal_error"
    assert "nobody thought of this" in refused["detail"]
    assert len(chunk.records) == len(given) - 1


async def test_a_ledger_that_cannot_be_written_stops_the_requests(
    config: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotator = AnnotationWorker(config, str(tmp_path / "ledger"))

    def broken() -> None:
        raise OSError(5, "Input/output error")

    assert annotator._ledger is not None
    monkeypatch.setattr(annotator._ledger, "collect", broken)
    monkeypatch.setattr("pipeline.annotate.worker._TICK_S", 0.01)
    await annotator._keep_up()
    assert annotator._stopping
    assert isinstance(annotator._trouble, LedgerError)
    assert "Input/output error" in str(annotator._trouble)
    assert "dmesg" in annotator._trouble.remedy
