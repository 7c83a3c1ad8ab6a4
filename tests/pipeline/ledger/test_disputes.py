from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from pipeline.ledger.disputes import disputed_subjects
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.segment import SegmentStore
from tests.pipeline.ledger.test_ledger import entry, key


def test_of_two_answers_the_first_wins_and_the_other_is_reported(tmp_path: Path) -> None:
    first = Ledger(tmp_path)
    second = Ledger(tmp_path)
    first.append(entry(1, "one", subject="a"))
    second.append(entry(1, "two", subject="b"))
    second.append(entry(2, "three", subject="c"))
    assert second.get(key(1)).text == "two"  # type: ignore[union-attr]
    second.close()
    first.close()
    names = SegmentStore(tmp_path).names()
    rows = {name: pq.read_table(tmp_path / name).to_pylist() for name in names}
    expected = rows[names[0]][0]["text"]
    loser = {"one": "b", "two": "a"}[expected]
    assert Ledger(tmp_path).get(key(1)).text == expected  # type: ignore[union-attr]
    assert disputed_subjects(SegmentStore(tmp_path)) == {loser}
