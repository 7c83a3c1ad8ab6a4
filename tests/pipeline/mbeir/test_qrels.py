from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.mbeir.jsonl import MalformedInput
from pipeline.mbeir.qrels import Relevant, load_relevant, read_qrels
from schemas.mbeir import Qrel


def test_five_columns_are_read(mbeir: Path) -> None:
    assert list(read_qrels(mbeir / "qrels/val/mbeir_oven_task6_val_qrels.txt")) == [
        Qrel("5:1", "5:1", 1, 6),
        Qrel("5:1", "6:7", 1, 6),
    ]


def test_relevance_follows_uniir(tmp_path: Path) -> None:
    path = tmp_path / "q.txt"
    path.write_bytes(b"9:1 0 9:5 1 3\r\n9:1 0 9:6 0 3\n\n9:2 0 9:7 1 0\n9:1 0 9:5 2 0\n")
    assert load_relevant(path) == {"9:1": Relevant(("9:5", "9:5"), 3), "9:2": Relevant(("9:7",), 0)}


def test_trec_files_and_malformed_lines_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "q.txt"
    path.write_text("9:1 0 9:5 1 3\n9:1 0 9:5 1\n9:1\n9:x 0 9:5 1 3\n9:1 0 9:5 one 3\n9:1 0 11:5 1 3\n")
    with pytest.raises(MalformedInput) as caught:
        list(read_qrels(path))
    assert [(p.line, p.key) for p in caught.value.problems] == [(2, ""), (3, ""), (4, "qid"), (5, "relevance"), (6, "did")]
    assert "TREC" in str(caught.value)
