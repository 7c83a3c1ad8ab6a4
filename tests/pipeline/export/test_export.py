"""Exports, read back as their projects read them; sentence-transformers trains on its export."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.export.formats import FORMATS
from pipeline.mbeir.pools import CandidatePool
from pipeline.mbeir.queries import read_queries
from pocket.training.train_models import MODELS
from schemas.record import EMB_TOKEN
from tests.support.builds import rows
from tests.support.cli import mbeir_cot

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def exported(pictured_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one export per format."""
    out = tmp_path_factory.mktemp("exports")
    for name in FORMATS:
        done = mbeir_cot("export", pictured_build, "--format", name, "--out", out / name)
        assert done.returncode == 0, done.stderr
        readme = (out / name / "README.md").read_text()
        assert "SYNTHETIC" in readme
        assert str(out) not in readme
    return out


@pytest.fixture(scope="module")
def records(pictured_build: Path) -> list[dict[str, Any]]:
    return rows(pictured_build / "dataset")


def conversation_is_sound(row: dict[str, Any], mbeir: Path) -> None:
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
    user, assistant = (turn["content"] for turn in row["messages"])
    assert user.count("<image>") == len(row["images"])
    assert assistant.endswith(EMB_TOKEN)
    assert all((mbeir / image).is_file() for image in row["images"])


def test_llama_factory(exported: Path, records: list[dict[str, Any]], small_world: Path) -> None:
    info = json.loads((exported / "llama-factory" / "dataset_info.json").read_text())["m_beir_cot"]
    found = pq.read_table(exported / "llama-factory" / info["file_name"]).to_pylist()
    assert info["formatting"] == "sharegpt"
    assert set(info["columns"].values()) == set(found[0])
    for row in found:
        conversation_is_sound(row, small_world)
    assert [row["messages"][1]["content"] for row in found] == [record["target"] for record in records]


def test_ms_swift(exported: Path, records: list[dict[str, Any]], small_world: Path) -> None:
    sft, pairs = (pq.read_table(exported / "ms-swift" / f"{name}.parquet").to_pylist() for name in ("sft", "embedding"))
    assert len(sft) == len(pairs) == len(records)
    for row in sft:
        conversation_is_sound(row, small_world)
    for row in pairs:
        for kind in ("positive", "negative"):
            for said, shown in zip(row[f"{kind}_messages"], row[f"{kind}_images"], strict=True):
                assert sum(turn["content"].count("<image>") for turn in said) == len(shown)
                assert all((small_world / image).is_file() for image in shown)
    assert {len(row["negative_messages"]) for row in pairs} == {0, 1}


def test_vlm2vec(exported: Path, records: list[dict[str, Any]], small_world: Path) -> None:
    found: list[dict[str, Any]] = []
    for path in sorted((exported / "vlm2vec").glob("*/*.parquet")):
        table = pq.read_table(path)
        assert table.column_names == ["qry", "qry_image_path", "pos_text", "pos_image_path", "neg_text", "neg_image_path"]
        found += table.to_pylist()
    assert len(found) == len(records)
    for row in found:
        for text, image in (("qry", "qry_image_path"), ("pos_text", "pos_image_path"), ("neg_text", "neg_image_path")):
            assert row[text].startswith("<|image_1|>\n") == bool(row[image])
            assert not row[image] or (small_world / row[image]).is_file()
        assert row["pos_text"]


def test_lamra_files_are_m_beir_files(exported: Path, records: list[dict[str, Any]], tmp_path: Path) -> None:
    folder = exported / "lamra"
    queries = [query for _, query in read_queries(folder / "mbeir_cot_train.jsonl")]
    assert [query.qid for query in queries] == [record["qid"] for record in records]
    lines = [json.loads(line) for line in (folder / "mbeir_cot_train.jsonl").read_text().splitlines()]
    assert [line["target"] for line in lines] == [record["target"] for record in records]
    # all positives, because one that is left out would become a negative
    assert [set(query.pos_cand_list) for query in queries] == [set(record["positives"]) for record in records]
    with CandidatePool.open(folder / "mbeir_cot_train_cand_pool.jsonl", tmp_path) as pool:
        for query in queries:
            assert all(did in pool for did in (*query.pos_cand_list, *query.neg_cand_list))
    assert (folder / "query_instructions.tsv").is_file()


def test_the_snippet_for_sentence_transformers_trains_on_all_of_it(
    exported: Path, records: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    snippet = (exported / "sentence-transformers" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    for said, here in (
        ("Qwen/Qwen2.5-VL-3B-Instruct", str(MODELS / "base")),
        (
            'output_dir="trained"',
            'output_dir="trained", max_steps=2, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True',
        ),
        ("per_device_train_batch_size=32", "per_device_train_batch_size=4"),
    ):
        assert said in snippet
        snippet = snippet.replace(said, here)
    (tmp_path / "sentence-transformers").symlink_to(exported / "sentence-transformers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    head, last = snippet.rsplit("SentenceTransformerTrainer(", 1)
    names: dict[str, Any] = {}
    exec(head, names)
    assert sum(map(len, names["train"].values())) == len(records)
    before = {name: value.clone() for name, value in names["model"].named_parameters()}
    exec(f"SentenceTransformerTrainer({last}", names)
    assert any(not torch.equal(before[name], value) for name, value in names["model"].named_parameters())


def test_candidates_without_text_are_never_null(
    pictured_build: Path, records: list[dict[str, Any]], small_world: Path, tmp_path: Path
) -> None:
    """An image,text positive without text is kept; a text positive without text drops its record."""
    first = {
        name: next(row for row in records if (row["dataset"], row["task_id"]) == name) for name in (("edis", 2), ("webqa", 1))
    }
    emptied = {did for row in first.values() for did in row["positives"]}
    lost = sum(set(row["positives"]) <= emptied and row["cand_modality"] == "text" for row in records)
    root = tmp_path / "mbeir"
    shutil.copytree(small_world, root)
    for pool in (root / "cand_pool").rglob("*.jsonl"):
        rows_ = [json.loads(line) for line in pool.read_text().splitlines()]
        pool.write_text("".join(json.dumps(row | ({"txt": ""} if row["did"] in emptied else {})) + "\n" for row in rows_))
    out = tmp_path / "out"
    done = mbeir_cot("export", pictured_build, "--format", "sentence-transformers", "--out", out, "--mbeir", root)
    assert done.returncode == 0, done.stderr
    assert f"{lost:,} records were left out: their positives have neither text nor image" in done.stdout
    assert f"{lost:,} records are left out" in (out / "README.md").read_text()
    tables = [pq.read_table(path) for path in out.glob("*.parquet")]
    assert sum(map(len, tables)) == len(records) - lost
    assert not any(table["positive"].null_count for table in tables)
    edis = pq.read_table(next(iter(sorted(out.glob("edis_task2*.parquet"))))).to_pylist()
    assert edis[0]["positive"]["text"] == ""
    assert edis[0]["positive"]["image"]["bytes"]
    assert edis[1]["positive"]["text"]


def test_records_with_fewer_negatives_than_asked_for_are_kept(
    pictured_build: Path, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = mbeir_cot("export", pictured_build, "--format", "sentence-transformers", "--out", out, "--negatives", "3")
    assert done.returncode == 0, done.stderr
    columns = {path.stem: pq.read_schema(path).names[2:] for path in out.glob("*.parquet")}
    for name, found in columns.items():
        assert found == (["negative"] if len(found) == 1 else [f"negative_{i + 1}" for i in range(len(found))])
        assert (f"-{len(found)}-negative" in name) == (len(found) < 3)
    held = Counter(len(columns[path.stem]) for path in out.glob("*.parquet") for _ in range(pq.read_metadata(path).num_rows))
    assert held == Counter(min(3, len(record["hard_negatives"])) for record in records)
    assert len(held) > 1


def test_an_impossible_export_says_why(pictured_build: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    done = mbeir_cot("export", pictured_build, "--format", "lamra", "--out", taken)
    assert done.returncode == 2
    assert "exists" in done.stderr
    done = mbeir_cot("export", pictured_build, "--format", "no-such", "--out", tmp_path / "x")
    assert done.returncode == 2
    assert "llama-factory" in done.stderr
    done = mbeir_cot("export", pictured_build, "--format", "lamra", "--out", tmp_path / "x", "--mbeir", tmp_path / "nowhere")
    assert done.returncode == 2
    assert "--mbeir" in done.stderr
    assert not (tmp_path / "x").exists()
