"""What README shows runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pocket.world.write import write_world

ROOT = Path(__file__).parents[1]


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.setenv("MBEIR_COT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path / "build" / "pocket" / "world", train_queries=64)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert isinstance(names["text"], str)
    assert names["positives"]
    assert names["line"] == 60


def test_every_make_target_that_it_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert named <= targets
