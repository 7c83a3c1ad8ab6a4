"""Exports, read back as their projects read them; sentence-transformers itself trains on its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.mbeir.pools import CandidatePool
from pipeline.mbeir.queries import read_queries
from pocket.models import MODELS
from schemas.record import EMB_TOKEN
from tests.builds import rows
from tests.cli import mbeir_cot

pytestmark = [pytest.mark.slow]

FORMATS = ("sentence-transformers", "llama-factory", "ms-swift", "vlm2vec", "lamra")


@pytest.fixture(scope="module")
def exported(pictured_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an export in every format."""
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
    found = json.loads((exported / "llama-factory" / info["file_name"]).read_text())
    assert info["formatting"] == "sharegpt"
    assert set(info["columns"].values()) == set(found[0])
    for row in found:
        conversation_is_sound(row, small_world)
    assert [row["messages"][1]["content"] for row in found] == [record["target"] for record in records]


def test_ms_swift(exported: Path, records: list[dict[str, Any]], small_world: Path) -> None:
    sft = [json.loads(line) for line in (exported / "ms-swift" / "sft.jsonl").read_text().splitlines()]
    pairs = [json.loads(line) for line in (exported / "ms-swift" / "embedding.jsonl").read_text().splitlines()]
    assert len(sft) == len(pairs) == len(records)
    for row in sft:
        conversation_is_sound(row, small_world)
    for row in pairs:
        assert len(row["images"]) == row["messages"][0]["content"].count("<image>")
        for kind in ("positive", "negative"):
            messages, images = row.get(f"{kind}_messages", []), row.get(f"{kind}_images", [])
            assert len(messages) == len(images)
            for said, shown in zip(messages, images, strict=True):
                assert sum(turn["content"].count("<image>") for turn in said) == len(shown)
                assert all((small_world / image).is_file() for image in shown)
        assert len(row["positive_messages"]) == 1
    assert any("negative_messages" in row for row in pairs)


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
    # every positive: one that is left out would be a negative
    assert [set(query.pos_cand_list) for query in queries] == [set(record["positives"]) for record in records]
    with CandidatePool.open(folder / "mbeir_cot_train_cand_pool.jsonl", tmp_path) as pool:
        for query in queries:
            assert all(did in pool for did in (*query.pos_cand_list, *query.neg_cand_list))
    assert (folder / "query_instructions.tsv").is_file()


def test_sentence_transformers_trains_on_it(exported: Path, records: list[dict[str, Any]], tmp_path: Path) -> None:
    import torch
    from datasets import load_dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    files = sorted((exported / "sentence-transformers").glob("*.parquet"))
    assert sum(pq.read_metadata(path).num_rows for path in files) == len(records)
    kinds = ("cirr_task7", "mscoco_task0", "oven_task6")  # image and text to image; text to image; image and text to text
    train = {
        path.stem: load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")).select(
            range(4)
        )
        for path in files
        if path.stem in kinds
    }
    assert set(train) == set(kinds)
    body = Transformer(str(MODELS / "base"), transformer_task="feature-extraction")
    model = SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension(), pooling_mode="lasttoken")], device="cpu")
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer = SentenceTransformerTrainer(
        model,
        SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path / "out"),
            max_steps=2,
            per_device_train_batch_size=4,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=train,
        loss=CachedMultipleNegativesRankingLoss(model, mini_batch_size=2),
    )
    done = trainer.train()
    assert done.global_step == 2
    assert done.training_loss > 0
    assert any(not torch.equal(before[name], value) for name, value in model.named_parameters())


def test_what_cannot_be_exported_says_why(pictured_build: Path, tmp_path: Path) -> None:
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
