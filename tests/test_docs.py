"""The snippets of docs/loading.md and of the data card run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "loading.md").read_text(), re.DOTALL)

pytestmark = [pytest.mark.slow]


def run(code: str, tmp_path: Path) -> str:
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "MBEIR_COT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_way_to_load_is_shown() -> None:
    text = "\n".join(SNIPPETS)
    for wanted in ("load_dataset", "streaming=True", "DataLoader", "duckdb", "polars", "CandidatePool"):
        assert wanted in text


def test_the_snippets_run(pictured_build: Path, small_world: Path, tmp_path: Path) -> None:
    # in one process: each import of torch and datasets takes seconds
    body = "\n".join(
        f"def snippet_{i}():\n" + "".join(f"    {line}\n" for line in code.splitlines()) + f"snippet_{i}()"
        for i, code in enumerate(SNIPPETS)
    )
    said = run(f"DATASET, MBEIR = {str(pictured_build / 'dataset')!r}, {str(small_world)!r}\n{body}", tmp_path)
    assert "<|emb|>" in said
    assert "think_rate" in said


def test_the_cards_snippet_runs(pictured_build: Path, tmp_path: Path) -> None:
    card = (pictured_build / "dataset" / "README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(snippets) == 1
    code = snippets[0].replace("PATH_OR_REPO", str(pictured_build / "dataset"))
    run(f"{code}\nassert len(reasoning) and len(rejected)", tmp_path)
