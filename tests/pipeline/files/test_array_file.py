"""Arrays on disk get their room before they are filled: a disk that is full is an error, not a killed process."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbeir_cot.failures import explained
from pipeline.files.array_file import allocate_array

ROOT = Path(__file__).parents[3]


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_the_room_is_taken_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "vectors.npy"
    array_ND = allocate_array(path, np.float16, (1000, 512))
    assert path.stat().st_blocks * 512 >= array_ND.nbytes
    array_ND[:] = 3
    array_ND.flush()
    assert (np.load(path, allow_pickle=False) == np.full((1000, 512), 3, np.float16)).all()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(number))
    with pytest.raises(OSError, match=r"vectors\.npy") as caught:
        allocate_array(tmp_path / "vectors.npy", np.float16, (10, 4))
    assert caught.value.errno == number
    assert not list(tmp_path.iterdir())
    known = explained(caught.value)
    assert known is not None
    assert "vectors.npy" in known.problem


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EINVAL])
def test_a_file_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """numpy writes the header and the last byte itself, and maps the file (EINVAL where that is not possible); it names no file."""

    def fail(path: Path, *_: Any) -> None:
        path.write_bytes(b"header")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(np.lib.format, "open_memmap", fail)
    with pytest.raises(OSError, match=r"vectors\.npy"):
        allocate_array(tmp_path / "vectors.npy", np.float16, (10, 4))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_that_cannot_allocate_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(number))
    assert allocate_array(tmp_path / "vectors.npy", np.float16, (10, 4)).shape == (10, 4)


def test_no_other_module_makes_an_array_file() -> None:
    packages = ("mbeir_cot", "pipeline", "trainer", "schemas", "pocket")
    files = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    assert [path.name for path in files if "open_memmap" in path.read_text(encoding="utf-8")] == ["array_file.py"]
