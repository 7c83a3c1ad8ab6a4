from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.mbeir import jsonl
from pipeline.mbeir.jsonl import LinePolicy, MalformedInput, RejectsFile, read_lines, read_rows
from pipeline.mbeir.queries import read_queries
from schemas.errors import ConfigError, InputError
from schemas.mbeir import Candidate
from tests.pipeline.mbeir.conftest import write_lines

GOOD = {"did": "9:1", "txt": "x", "modality": "text"}


def test_quirks_are_normal_input(mbeir: Path) -> None:
    rows = {path.name: [q for _, q in read_queries(path)] for path in sorted((mbeir / "query").rglob("*.jsonl"))}
    assert {name: len(found) for name, found in rows.items()} == {
        "mbeir_mscoco_task3_val.jsonl": 3,
        "mbeir_mscoco_train.jsonl": 3,
        "mbeir_oven_task6_val.jsonl": 1,
        "mbeir_oven_task8_val.jsonl": 1,
        "mbeir_oven_train.jsonl": 2,
        "mbeir_union_up_train.jsonl": 6,
        "mbeir_union_val.jsonl": 5,
    }
    assert rows["mbeir_oven_task8_val.jsonl"][0].query_src_content == '{"entity": "Q1234"}'


def test_line_numbers_count_blank_lines_and_crlf(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf1\r\n\r\n\n  \n5\n6")
    assert list(read_lines(path)) == [(1, b"1\r"), (5, b"5"), (6, b"6")]


@given(
    st.lists(st.binary(max_size=9).filter(lambda b: b"\n" not in b and b.strip() != b"" and b[:1] != b"\xef")),
    st.integers(1, 9),
)
def test_any_block_size_gives_the_same_lines(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], block: int) -> None:
    path = tmp_path_factory.mktemp("blocks") / "x.jsonl"
    path.write_bytes(b"\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "BLOCK_BYTES", block)
        assert list(read_lines(path)) == list(enumerate(lines, 1))


def test_an_error_names_file_line_key_value_and_remedy(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "pool.jsonl", [GOOD, GOOD | {"did": "11:3"}, GOOD | {"modality": None}, "{", {"did": "9:4"}])
    with pytest.raises(MalformedInput) as caught:
        list(read_rows(path, Candidate))
    assert [(p.line, p.key, p.value) for p in caught.value.problems] == [
        (2, "did", "'11:3'"),
        (3, "modality", "None"),
        (4, "", ""),
        (5, "modality", ""),
    ]
    text = str(caught.value)
    assert f"{path}:2: did = '11:3': " in text
    assert "pool.jsonl:4: not valid JSON" in text
    assert "pool.jsonl:5: modality = : this key is missing" in text
    assert "what to do:" in text
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == text
    assert again.problems == caught.value.problems


def test_strict_yields_nothing_after_the_first_malformed_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "pool.jsonl", [GOOD, "nonsense", GOOD])
    seen = []
    with pytest.raises(MalformedInput):
        for number, _ in read_rows(path, Candidate):
            seen.append(number)
    assert seen == [1]


def test_strict_lists_at_most_20(tmp_path: Path) -> None:
    with pytest.raises(MalformedInput, match="and more") as caught:
        list(read_rows(write_lines(tmp_path / "many.jsonl", ["[]"] * 21), Candidate))
    assert len(caught.value.problems) == 20
    with pytest.raises(MalformedInput) as caught:
        list(read_rows(write_lines(tmp_path / "few.jsonl", ["[]"] * 20), Candidate))
    assert not caught.value.more


@given(st.lists(st.booleans(), max_size=30))
def test_skip_yields_or_records_every_line(tmp_path_factory: pytest.TempPathFactory, good: list[bool]) -> None:
    folder = tmp_path_factory.mktemp("skip")
    path = write_lines(folder / "x.jsonl", [GOOD if ok else '{"did": "9:1", "x": ' for ok in good])
    with RejectsFile(folder / "rejects" / "x.jsonl") as rejects:
        yielded = [number for number, _ in read_rows(path, Candidate, policy=LinePolicy.SKIP, rejects=rejects)]
    recorded = [json.loads(line) for line in rejects.path.read_text().splitlines()] if rejects.path.exists() else []
    assert yielded == [number for number, ok in enumerate(good, 1) if ok]
    assert [row["line"] for row in recorded] == [number for number, ok in enumerate(good, 1) if not ok]
    assert rejects.lines == len(recorded)
    assert all(row["raw"] == '{"did": "9:1", "x": ' and "not valid JSON" in row["problems"][0]["problem"] for row in recorded)


def test_skip_without_a_rejects_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rejects file"):
        list(read_rows(write_lines(tmp_path / "x.jsonl", [GOOD]), Candidate, policy=LinePolicy.SKIP))


def test_a_truncated_download_is_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [GOOD, '{"did": "9:2", "tx'], end=False)
    with pytest.raises(MalformedInput, match="download may be truncated"):
        list(read_rows(path, Candidate))


def test_invalid_utf8_is_malformed(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"did": "9:1", "txt": "\xff", "modality": "text"}\n')
    with pytest.raises(MalformedInput):
        list(read_rows(path, Candidate))


def test_an_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(jsonl, "BLOCK_BYTES", 100)
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"1\n" + b"x" * 2000)
    with pytest.raises(InputError, match=r"x\.jsonl:2: a line of more than"):
        list(read_lines(path))


@pytest.mark.parametrize("kind", ["missing", "directory"])
def test_a_file_that_cannot_be_opened_is_a_clear_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path if kind == "directory" else tmp_path / "no.jsonl"
    with pytest.raises(InputError, match=str(path)):
        list(read_lines(path))
