"""Datasets and ledgers from before 0.2 (other config keys, other modules, answers without today's fields) stay readable."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq

from data_cards import render_dataset_card
from pipeline.dataset.built_dataset import BuiltDataset
from pipeline.hub.check import check
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.maintenance import compact, ledger_stats, verify_ledger
from schemas.record import EMB_TOKEN
from trainer.data.dataset import Records

EARLIER: Final = Path(__file__).parent / "earlier"


def test_the_dataset_opens_in_python_in_datasets_and_for_training(tmp_path: Path) -> None:
    from datasets import load_dataset

    dataset = BuiltDataset.open(EARLIER)
    assert not list(dataset.mismatches())
    assert (dataset.manifest.records, dataset.manifest.rejections) == (24, 0)
    ids = {row["id"] for row in dataset.rows()}
    assert all(row["facet_confidences"] == [] for row in dataset.rows())  # columns that it does not have
    assert dataset.rejections(["id", "confidence"]).schema.names == ["id", "confidence"]
    assert check(dataset) == []
    copied = shutil.copytree(EARLIER / "dataset", tmp_path / "dataset")
    rows = load_dataset(str(copied), split="train", cache_dir=str(tmp_path / "cache"))
    assert {row["id"] for row in rows} == ids
    records = Records.load(str(copied))
    assert len(records) == 24
    traces = records.traces()
    assert len(traces) == 14
    assert all(text and EMB_TOKEN not in text for text in traces.values())


def test_its_card_can_be_written() -> None:
    dataset = BuiltDataset.open(EARLIER)
    card = render_dataset_card(dataset.manifest, dataset.directory)
    assert f"{dataset.manifest.records}" in card
    assert "other request fields" not in card  # a setting that it did not have


def test_the_ledger_is_read_verified_and_compacted(tmp_path: Path) -> None:
    ledger = shutil.copytree(EARLIER / "ledger", tmp_path / "ledger")
    stats = ledger_stats(ledger)
    assert (stats.answers, stats.distinct, stats.segments) == (53, 53, 1)
    assert not verify_ledger(ledger)
    compact(ledger)
    assert ledger_stats(ledger).distinct == 53
    opened = Ledger(str(ledger), retry_failed=False)
    try:
        assert len(opened) == 53
        keys = [key for path in sorted(ledger.glob("*.parquet")) for key in pq.read_table(path)["fingerprint"].to_pylist()]
        answers = [opened.get(key) for key in keys]
        assert all(answer is not None and answer.text for answer in answers)
    finally:
        opened.close()
