"""Damaged files of state are named, with what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from pydantic import BaseModel

from pipeline.files.state import read_json, read_lines, read_model
from schemas.errors import InputError


class Model(BaseModel):
    number: int


@pytest.mark.parametrize("content", [b"", b'{"number": 1', b"{}\xff", b"null,"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"run\.json is damaged or of another version") as caught:
        read_json(path, "begin again")
    assert caught.value.remedy == "begin again"
    with pytest.raises(InputError, match=r"run\.json is damaged or of another version"):
        read_model(path, Model)


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"number": 1}')
    assert (read_json(path), read_model(path, Model)) == ({"number": 1}, Model(number=1))
    path.write_text('{"words": 1}')
    with pytest.raises(InputError, match="another version"):
        read_model(path, Model)


def test_a_disk_that_fails_is_no_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_bytes(path: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(InputError, match="the disk or its connection fails"):
        read_json(tmp_path / "run.json")


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_lines(path) == []
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"st\xc3')
    assert read_lines(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2, is damaged"):
        read_lines(path)
