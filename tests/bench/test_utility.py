"""Measured utilities against the pocket world's truth."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.utility import main
from pocket.world.ground_truth import load_truth
from schemas.mbeir import DatasetTask
from schemas.record import record_id
from tests.pocket.conftest import world  # noqa: F401 (a fixture)


def test_utilities_are_compared_with_what_the_queries_need(
    world: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    truths = [truth for truth in load_truth(world / "truth").queries if truth.split == "test"]
    need = [truth for truth in truths if truth.needs_reasoning][:4]
    simple = [truth for truth in truths if not truth.needs_reasoning][:4]
    utilities = [0.3, 0.15, 0.06, -0.1, 0.07, -0.2, -0.3, None]
    ids = []
    for truth in [*need, *simple]:
        task = DatasetTask.parse(truth.dataset_task)
        ids.append(record_id("test", task.dataset, task.task_id, truth.qid))
    file = tmp_path / "utility.parquet"
    pq.write_table(pa.table({"id": [*ids, "train/oven/task6/6:1"], "utility": [*utilities, 1.0]}), file)

    main(file, world, "test")

    said = capsys.readouterr().out
    assert "7 queries, 4 need reasoning; AUC 0.833" in said  # 10 of the 12 pairs; of another split or not measured: left out
    assert "the trace helps: 75.0% of those that need reasoning" in said
    assert "the trace helps: 33.3% of those that need none" in said
    shown = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if line.startswith("│")]
    assert ["0.05", "4", "75.0%"] in shown
    assert ["0.1", "2", "100.0%"] in shown
