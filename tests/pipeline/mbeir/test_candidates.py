from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.mbeir.candidates import CandidateLookup, fetch_held
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.pools import CandidatePool
from schemas.mbeir import DatasetTask
from tests.pipeline.mbeir.conftest import write_lines

TASK = DatasetTask("webqa", 1)


def candidate(number: int, where: str) -> dict[str, object]:
    return {"did": f"2:{number}", "txt": f"{number} of the {where} pool", "modality": "text"}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """1 and 2 in the local pool; 2, 3 and 4 in the global one."""
    pools = tmp_path / "mbeir" / "cand_pool"
    write_lines(pools / "local" / "mbeir_webqa_task1_cand_pool.jsonl", [candidate(n, "local") for n in (1, 2)])
    write_lines(pools / "global" / "mbeir_union_train_cand_pool.jsonl", [candidate(n, "global") for n in (2, 3, 4)])
    return Layout.open(tmp_path / "mbeir")


def test_the_first_positive_is_looked_for_in_the_local_pool_before_the_global_one(layout: Layout, tmp_path: Path) -> None:
    with CandidateLookup(layout, tmp_path / "cache") as lookup:
        positives = [["2:3", "2:2"], ["2:4", "2:3"], ["2:9"], []]
        found = lookup.first_held(TASK, "train", positives)
    assert [one and one.txt for one in found] == ["2 of the local pool", "4 of the global pool", None, None]


def test_candidates_come_in_the_order_asked_each_from_the_first_pool_that_holds_it(layout: Layout, tmp_path: Path) -> None:
    with CandidateLookup(layout, tmp_path / "cache") as lookup:
        held = [one.txt for one in lookup.held(TASK, "train", ["2:3", "2:9", "2:2"])]
    assert held == ["3 of the global pool", "2 of the local pool"]
    pools = [CandidatePool.open(path, tmp_path / "cache") for path in layout.target_pools(TASK, "train")]
    by_did = fetch_held(pools, ["2:3", "2:9", "2:2", "2:3"])
    assert {did: one.txt for did, one in by_did.items()} == {"2:2": "2 of the local pool", "2:3": "3 of the global pool"}
