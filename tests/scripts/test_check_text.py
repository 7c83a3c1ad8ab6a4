"""The project's own hooks in .pre-commit-config.yaml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_text.py"


@pytest.mark.parametrize(
    ("check", "before", "after"),
    [
        ("end-of-file", b"a\nb", b"a\nb\n"),
        ("end-of-file", b"a\n\n\n", b"a\n"),
        ("end-of-file", b"\n", b""),
        ("end-of-file", b"a \n", b"a \n"),
        ("end-of-file", b"", b""),
        ("trailing-whitespace", b"a \t\nb\n  \n", b"a\nb\n\n"),
        ("trailing-whitespace", b"a \r\nb", b"a\r\nb"),
        ("trailing-whitespace", b"  a\n\n\n", b"  a\n\n\n"),
    ],
)
def test_a_file_is_fixed_and_named(tmp_path: Path, check: str, before: bytes, after: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(before)
    done = subprocess.run([sys.executable, SCRIPT, check, path], capture_output=True, text=True, check=False)
    assert path.read_bytes() == after
    assert done.returncode == int(before != after)
    assert (str(path) in done.stdout) == (before != after)
