"""A small training dataset made from a world's queries: short traces, and one query in three reasons."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from pipeline.config import load_config
from pipeline.mbeir.instructions import InstructionTable, SeededChoice
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.queries import read_queries
from pocket.training.train_models import MODELS
from schemas.mbeir import DATASET_TASKS
from schemas.record import EMB_TOKEN, record_id
from schemas.training import AdaptiveSettings, TrainConfig
from tests.support.cli import mbeir_cot
from tests.support.made_once import made_once
from trainer.data.batches import BatchSource
from trainer.data.dataset import Candidates, Records
from trainer.data.encoding import EncodedSequence
from trainer.embedding.transformers_engine import AdaptiveEmbedder
from trainer.model.embedder import Embedder


def rows(mbeir: Path, each: int = 4) -> Iterator[dict[str, Any]]:
    layout = Layout.open(mbeir)
    table = InstructionTable.load(layout.instructions)
    number = 0
    for task in DATASET_TASKS:
        path = layout.queries("train", task)
        if not path.is_file():
            continue
        for _, query in islice(read_queries(path), each):
            number += 1
            reasons = number % 3 == 0
            said = f"Source: thing {number % 5}\nAnswer: the one that fits {number % 4}\n" if reasons else ""
            yield {
                "id": record_id("train", task.dataset, task.task_id, query.qid),
                "qid": query.qid,
                "dataset": task.dataset,
                "split": "train",
                "task_id": task.task_id,
                "instruction": table.for_query(query, SeededChoice(), split="train"),
                "query_text": query.query_txt,
                "query_image": query.query_img_path,
                "positives": list(query.pos_cand_list),
                "hard_negatives": list(query.neg_cand_list),
                "multiplicity": 1 + number % 2,
                "route": "reasoning" if reasons else "bypass",
                "answer": f"the one that fits {number % 4}" if reasons else None,
                "target": said + EMB_TOKEN,
            }


def write_dataset(directory: Path, records: list[dict[str, Any]]) -> Path:
    (directory / "data").mkdir(parents=True)
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("qid", pa.string()),
            ("dataset", pa.string()),
            ("split", pa.string()),
            ("task_id", pa.int64()),
            ("instruction", pa.string()),
            ("query_text", pa.string()),
            ("query_image", pa.string()),
            ("positives", pa.list_(pa.string())),
            ("hard_negatives", pa.list_(pa.string())),
            ("multiplicity", pa.int64()),
            ("route", pa.string()),
            ("answer", pa.string()),
            ("target", pa.string()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(records, schema), directory / "data" / "train-00000-of-00001.parquet")
    return directory


@pytest.fixture(scope="session")
def dataset(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return (
        made_once(tmp_path_factory, "dataset", lambda directory: write_dataset(directory / "d", list(rows(small_world)))) / "d"
    )


@pytest.fixture(scope="session")
def tiny_world(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world with a few validation queries of three tasks and small pools, for fast evaluations."""
    root = tmp_path_factory.mktemp("tiny") / "M-BEIR"
    shutil.copytree(small_world, root, copy_function=os.link)
    wanted: set[str] = set()
    for path in (root / "query" / "val").iterdir():
        lines = path.read_text().splitlines()[:12]
        path.unlink()
        if any(name in path.name for name in ("cirr_task7", "fashioniq_task7", "webqa_task1")):
            path.write_text("\n".join(lines) + "\n")
            wanted.update(did for line in lines for did in json.loads(line)["pos_cand_list"])
    for path in (root / "cand_pool" / "local").iterdir():
        lines = path.read_text().splitlines()
        path.unlink()  # a hard link to the small world's
        kept = [line for number, line in enumerate(lines) if number < 60 or json.loads(line)["did"] in wanted]
        path.write_text("\n".join(kept) + "\n")
    return root


@pytest.fixture(scope="session")
def train_file(small_world: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a training of six short steps."""

    def write(directory: Path) -> None:
        settings = {
            "model": {"base": str(MODELS / "base"), "attention": "eager", "lora": {"r": 4, "alpha": 8}},
            "data": {
                "dataset": str(dataset),
                "always_reason_dataset": str(dataset),
                "mbeir": str(small_world),
                "candidate_cache": str(directory / "cache"),
                "prompts": "pocket",
                "workers": 0,
            },
            "out": str(directory / "run"),
            "batch": {"global_batch_size": 8, "micro_batch_size": 4},
            "loss": {"temperature": 0.05},
            "optimiser": {"lr": 1e-3, "max_steps": 6},
            "checkpoint": {"save_every": 2},
            "adaptive": {"max_new_tokens": 12},
        }
        (directory / "train.yaml").write_text(yaml.safe_dump(settings))

    return made_once(tmp_path_factory, "train", write) / "train.yaml"


@pytest.fixture(scope="session")
def finished(train_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""

    def train(directory: Path) -> None:
        done = mbeir_cot("train", train_file, "--out", directory / "run")
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "finished", train) / "run"


@pytest.fixture(scope="session")
def config(train_file: Path) -> TrainConfig:
    return load_config(train_file, TrainConfig, ())


def fresh(config: TrainConfig, **changes: Any) -> Embedder:
    """A new embedder whose adapter is random, where it would normally start with zeros in one half."""
    torch.manual_seed(0)
    embedder = Embedder.create(
        config.model.model_copy(update=changes), config.data.prompts, temperature=0.05, learn_temperature=True
    )
    with torch.no_grad():
        for name, parameter in embedder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return embedder


def source_of(config: TrainConfig, embedder: Embedder, **share: int) -> BatchSource:
    records = Records.load(config.data.dataset)
    candidates = Candidates(config.data.mbeir, records.split, config.data.candidate_cache)
    return BatchSource(
        config, "trace", records, traces=records.traces(), encoder=embedder.encoder(), candidates=candidates, **share
    )


def mixed_routes(embedder: Embedder, rows: list[EncodedSequence]) -> None:
    """Moves the embedding token's row until some of these queries bypass and others reason."""
    adaptive = AdaptiveEmbedder(embedder, AdaptiveSettings(max_new_tokens=1))
    vectors = torch.stack([one.vector for one in adaptive.embed(rows, route="always-direct")])
    towards = vectors[: len(rows) // 2].mean(0) - vectors.mean(0)
    delta = next(p for name, p in embedder.named_parameters() if "trainable_tokens_delta" in name)
    before = delta.detach().clone()
    for strength in (4.0 * 1.3**i for i in range(30)):
        with torch.no_grad():
            delta.copy_(before + strength * (towards / towards.norm() + 0.3 * vectors.mean(0)))
        if 0 < sum(one.reasoned for one in adaptive.embed(rows, route="learned")) < len(rows):
            return
    raise AssertionError("no strength divides these queries")
