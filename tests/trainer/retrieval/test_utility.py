"""The real `mbeir-cot utility` on a short run; its figures computed again from the vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.config import load_config
from schemas.training import TrainConfig
from tests.support.cli import mbeir_cot
from tests.trainer.retrieval.test_mine import world  # noqa: F401 (a fixture)
from trainer.data.dataset import Records
from trainer.embedding.workers import EmbedderSpec, LocalPoolEmbedder
from trainer.retrieval.index import Index
from trainer.retrieval.negatives import shared_positives
from trainer.retrieval.training_pool import PositionsOfDids, embed_items

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_utility_is_how_much_the_positives_lead_grows(
    world: Path,  # noqa: F811
    finished: Path,
    dataset: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "utility"
    given = ("--set", f"data.mbeir={world}", "--set", f"data.candidate_cache={tmp_path / 'cache'}", "--quiet")
    done = mbeir_cot("utility", finished, dataset, "--out", out, "--sample", "60", *given, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "traces help" in done.stdout
    rows = {row["id"]: row for row in pq.read_table(out / "utility.parquet").to_pylist()}
    records = Records.load(str(dataset))
    traces = records.traces()
    assert set(rows) == set(traces)

    config = load_config(finished / "train.json", TrainConfig, (f"data.mbeir={world}",))
    workers = LocalPoolEmbedder(EmbedderSpec(config, finished / "trace" / "model").embedder(), config)
    items = [item for item in map(records.item, range(len(records))) if item.id in traces]
    (directory,) = out.glob("index-*")
    index = Index.open(directory)
    pool = np.asarray(index.vectors, np.float32)
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    sampled = set(np.random.default_rng(0).permutation(len(pool))[:60].tolist())
    positions = PositionsOfDids(index)
    masks = shared_positives([item.positives for item in items])
    margins = {}
    for name, written in (("without", {}), ("with", traces)):
        vectors = embed_items(items, written, workers).vectors
        for item, mask in zip(items, masks, strict=True):
            scores = pool @ (vectors[item.id].astype(np.float32) / np.linalg.norm(vectors[item.id].astype(np.float32)))
            best = max(scores[position] for position in positions(item.positives))
            others = (sampled | set(positions(item.hard_negatives))) - set(positions(mask))
            beaten = [scores[position] for position in others]
            close = 2e-3  # of vectors that were computed in other batches
            least, most = (1 + sum(score > best + by for score in beaten) for by in (close, -close))
            assert least <= rows[item.id][f"rank_{name}"] <= most
            margins[item.id, name] = best - max(beaten)
            assert rows[item.id][f"margin_{name}"] == pytest.approx(margins[item.id, name], abs=2e-3)
    for identifier, row in rows.items():
        assert row["utility"] == pytest.approx(margins[identifier, "with"] - margins[identifier, "without"], abs=4e-3)
    report = json.loads((out / "report.json").read_text())
    assert report["helped"] == sum(row["utility"] > 0 for row in rows.values())

    done = mbeir_cot("utility", finished, dataset, "--out", out, "--sample", "60", "--by-failure", *given, timeout=300)
    assert done.returncode == 0, done.stderr
    failing = {row["id"]: row for row in pq.read_table(out / "utility.parquet").to_pylist()}
    assert set(failing) == set(records.table["id"].to_pylist())
    for identifier, row in failing.items():
        assert row["utility"] == pytest.approx(-row["margin_without"], abs=1e-6)
        assert row["rank_with"] is None
        if identifier in rows:
            assert row["margin_without"] == pytest.approx(rows[identifier]["margin_without"], abs=2e-3)
