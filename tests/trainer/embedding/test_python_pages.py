"""The Python in README and docs/python.md works on a real run, and prints what README shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.oracle import Oracle
from tests.support.cli import mbeir_cot
from tests.test_docs import ROOT, snippets


@pytest.mark.slow
def test_the_documented_python_runs(
    finished: Path,
    tiny_world: Path,
    small_world: Path,
    pictured_build: Path,
    oracle: Oracle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = mbeir_cot(
        "index", finished, "--out", tmp_path / "index", "--split", "val", "--pool", "webqa_task1",
        "--set", f"data.mbeir={tiny_world}", timeout=200,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "pocket-train").symlink_to(finished)
    (tmp_path / "build" / "pocket" / "world").mkdir(parents=True)
    (tmp_path / "build" / "pocket" / "world" / "mbeir").symlink_to(small_world)
    monkeypatch.chdir(tmp_path)
    (code,) = [code for code in snippets(ROOT / "README.md") if "TraceEmbedder" in code]
    capsys.readouterr()
    exec(code, {})
    said = capsys.readouterr().out.splitlines()
    promised = re.findall(r"^print.*  # (.+)$", code, re.MULTILINE)
    assert said[: len(promised)] == promised

    given = {
        "DATASET": str(pictured_build),
        "RUN": finished,
        "IMAGE": next((small_world / "mbeir_images").rglob("*.jpg")),
        "MBEIR": tiny_world,
        "INDEX": tmp_path / "index",
        "CONFIG": oracle.config(tmp_path, small_world),
        "OUT": tmp_path / "export",
    }
    for code in snippets(ROOT / "docs" / "python.md"):
        if "evaluate_run" in code:  # into its own directory, with one small variant
            code = code.replace('"evaluation.split=val"', f'"out={tmp_path / "run"}", "evaluation.split=val"')
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "trace").symlink_to(finished / "trace")
        exec(code, given | {"MBEIR": small_world} if "export_dataset" in code else given)
    assert (tmp_path / "run" / "eval" / "results_val.json").is_file()
    assert (tmp_path / "export" / "README.md").is_file()
