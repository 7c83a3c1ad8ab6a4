from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.mbeir.check import check
from pipeline.mbeir.findings import Finding
from tests.pipeline.mbeir.conftest import COCO, write_image, write_lines
from tests.support.cli import mbeir_cot

OVEN6 = "query/val/mbeir_oven_task6_val.jsonl"
POOL6 = "cand_pool/local/mbeir_oven_task6_cand_pool.jsonl"
QRELS6 = "qrels/val/mbeir_oven_task6_val_qrels.txt"


def found(root: Path, **options: Any) -> dict[str, list[Finding]]:
    result: dict[str, list[Finding]] = {}
    for finding in check(root, **options).findings:
        result.setdefault(finding.code, []).append(finding)
    return result


def test_the_quirks_of_the_real_benchmark_are_not_errors(mbeir: Path) -> None:
    report = check(mbeir, decode=True)
    assert report.ok, [f for f in report.findings if f.severity == "error"]
    assert {f.code for f in report.findings} == {"positives_outside_local_pool", "repeated_rows"}
    assert {f.severity for f in report.findings} == {"note"}


def edit(path: Path, change: Callable[[dict[str, Any]], None], line: int = 0) -> None:
    rows = [json.loads(text) for text in path.read_text("utf-8-sig").splitlines() if text.strip()]
    change(rows[line])
    write_lines(path, rows)


def _instructions(root: Path) -> Path:
    return root / "instructions" / "query_instructions.tsv"


def _append(root: Path, line: str) -> None:
    path = _instructions(root)
    path.write_text(path.read_text().rstrip() + "\n" + line)


def _without_oven(root: Path) -> None:
    path = _instructions(root)
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "OVEN" not in line))


def _double(path: Path) -> None:
    row = json.loads(path.read_text("utf-8-sig"))
    write_lines(path, [row, row])


# Each case breaks one thing and names the code, file and severity to be reported.
BREAKS: list[tuple[str, str, str, Callable[[Path], None]]] = [
    ("malformed_line", OVEN6, "error", lambda r: write_lines(r / OVEN6, ["{"]) and None),
    ("malformed_line", POOL6, "error", lambda r: edit(r / POOL6, lambda row: row.update(modality="video"))),
    ("malformed_line", QRELS6, "error", lambda r: (r / QRELS6).write_text("5:1 0 5:1 1\n") and None),
    ("malformed_line", "instructions/query_instructions.tsv", "error", lambda r: _append(r, "text\tvideo\tX\t9\tx\n")),
    ("duplicate_did", POOL6, "error", lambda r: edit(r / POOL6, lambda row: row.update(did="5:2"))),
    ("unknown_key", POOL6, "note", lambda r: edit(r / POOL6, lambda row: row.update(colour="red"))),
    ("empty_text", POOL6, "warning", lambda r: edit(r / POOL6, lambda row: row.update(txt=None))),
    ("no_image_path", OVEN6, "warning", lambda r: edit(r / OVEN6, lambda row: row.update(query_img_path=None))),
    ("wrong_file", OVEN6, "error", lambda r: edit(r / OVEN6, lambda row: row.update(qid="6:1"))),
    ("wrong_file", OVEN6, "error", lambda r: edit(r / OVEN6, lambda row: row.update(task_id=8))),
    ("duplicate_qid", OVEN6, "error", lambda r: _double(r / OVEN6)),
    ("positive_nowhere", OVEN6, "error", lambda r: edit(r / OVEN6, lambda row: row["pos_cand_list"].append("5:77"))),
    ("positive_of_absent_dataset", OVEN6, "note", lambda r: edit(r / OVEN6, lambda row: row["pos_cand_list"].append("8:7"))),
    ("first_positive_not_local", OVEN6, "error", lambda r: edit(r / OVEN6, lambda row: row["pos_cand_list"].reverse())),
    ("qrels_lack_query", QRELS6, "error", lambda r: (r / QRELS6).write_text("5:9 0 5:1 1 6\n") and None),
    ("qrels_of_other_queries", QRELS6, "note", lambda r: (r / QRELS6).write_text("5:9 0 5:1 1 6\n") and None),
    ("qrels_differ", QRELS6, "error", lambda r: (r / QRELS6).write_text("5:1 0 5:2 1 6\n") and None),
    ("no_qrels", OVEN6, "warning", lambda r: (r / QRELS6).unlink()),
    ("no_pool", OVEN6, "warning", lambda r: (r / POOL6).unlink()),
    ("no_instructions", "instructions/query_instructions.tsv", "error", lambda r: _instructions(r).unlink()),
    ("no_instruction", OVEN6, "error", _without_oven),
    ("image_missing", OVEN6, "error", lambda r: (r / "mbeir_images/oven_images/11/q1.jpg").unlink()),
    ("image_outside_root", OVEN6, "error", lambda r: edit(r / OVEN6, lambda row: row.update(query_img_path="../x.jpg"))),
]


@pytest.mark.parametrize(("code", "file", "severity", "break_it"), BREAKS, ids=[f"{b[0]}-{i}" for i, b in enumerate(BREAKS)])
def test_each_problem_is_found(mbeir: Path, code: str, file: str, severity: str, break_it: Callable[[Path], None]) -> None:
    assert code not in found(mbeir)
    break_it(mbeir)
    findings = {finding.file: finding for finding in found(mbeir)[code]}
    assert findings[file].severity == severity
    assert findings[file].remedy
    assert all(example.message for example in findings[file].examples)


def test_a_fetch_without_union_leaves_no_errors(mbeir: Path) -> None:
    """After `fetch --datasets mscoco` the training queries' candidates are missing: they are in the global pool."""
    for path in (mbeir / "cand_pool/global").iterdir():
        path.unlink()
    shutil.rmtree(mbeir / "query/union_train")
    train, lacking = "query/train/mbeir_mscoco_train.jsonl", ("9:10", "9:11")
    write_lines(mbeir / "cand_pool/local/mbeir_mscoco_task3_val_cand_pool.jsonl", _captions(mbeir, lacking))
    codes = found(mbeir)
    assert "positive_nowhere" not in {code for code, each in codes.items() if any(f.file == train for f in each)}
    (finding,) = [f for f in codes["positive_in_absent_pool"] if f.file == train]
    assert (finding.severity, finding.count) == ("warning", 2)
    assert f"mbeir-cot mbeir fetch {mbeir} --datasets mscoco --union" in finding.remedy
    (pool,) = [f for f in codes["no_pool"] if f.file == train]
    assert "--datasets mscoco --union" in pool.remedy
    (other,) = [f for f in codes["positive_of_absent_dataset"] if f.file == OVEN6]
    assert f"mbeir-cot mbeir fetch {mbeir} --datasets infoseek" in other.remedy


def _captions(root: Path, without: tuple[str, ...]) -> list[dict[str, Any]]:
    path = root / "cand_pool/local/mbeir_mscoco_task3_val_cand_pool.jsonl"
    return [row for line in path.read_text("utf-8").splitlines() if (row := json.loads(line))["did"] not in without]


def test_damaged_images_are_found_when_decoding(mbeir: Path) -> None:
    Image.effect_noise((200, 200), 50).save(mbeir / COCO / "COCO_1.jpg")
    whole = (mbeir / COCO / "COCO_1.jpg").read_bytes()
    (mbeir / COCO / "COCO_1.jpg").write_bytes(whole[: len(whole) // 2])
    assert "image_truncated" not in found(mbeir)
    assert {f.examples[0].line for f in found(mbeir, decode=True)["image_truncated"]} == {1, 2, 3}


def test_all_problems_are_counted_and_a_few_are_shown(mbeir: Path) -> None:
    write_lines(mbeir / OVEN6, ["{"] * 30)
    (finding,) = found(mbeir, max_examples=3)["malformed_line"]
    assert (finding.count, len(finding.examples)) == (30, 3)


def test_the_command_exits_with_1_iff_there_is_an_error(mbeir: Path) -> None:
    done = mbeir_cot("mbeir", "check", mbeir)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "12 files: 0 errors, 0 warnings, 5 notes. Usable as it is.")
    write_image(mbeir / "secret.jpg")
    (mbeir / COCO / "COCO_3.jpg").unlink()
    done = mbeir_cot("mbeir", "check", mbeir, "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert {f["code"] for f in report["findings"] if f["severity"] == "error"} == {"image_missing"}
