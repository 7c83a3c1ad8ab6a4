"""Records with mined negatives: batches hold them, resumed runs keep them, wrong files are errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from schemas.errors import InputError
from schemas.training import DataSettings, TrainConfig
from tests.trainer.conftest import fresh
from trainer.data.batches import BatchSource
from trainer.data.dataset import Candidates, Records
from trainer.data.mined import training_records, write_mined
from trainer.training.run_directory import run_conditions


def settings_for(config: TrainConfig, file: Path, **changes: object) -> TrainConfig:
    data = {"hard_negatives": "mined", "mined": file, "mined_per_query": 2} | changes
    return config.model_copy(update={"data": config.data.model_copy(update=data)})


@pytest.fixture
def mined_file(config: TrainConfig, tmp_path: Path) -> Path:
    """Each record's negatives are the positives of the next three; the last record has none."""
    records = Records.load(config.data.dataset)
    ids, positives = records.table["id"].to_pylist(), records.table["positives"].to_pylist()
    rows = [
        {"id": identifier, "mined_negatives": [positives[(i + n) % len(ids)][0] for n in (1, 2, 3)], "scores": [0.3, 0.2, 0.1]}
        for i, identifier in enumerate(ids[:-1])
    ]
    write_mined(tmp_path / "mined.parquet", rows, {"embedder": "abc"})
    return tmp_path / "mined.parquet"


def test_batches_hold_mined_negatives(config: TrainConfig, mined_file: Path) -> None:
    changed = settings_for(config, mined_file)
    records, plain = training_records(changed.data), training_records(config.data)
    assert records.digest != plain.digest
    assert plain.digest == Records.load(config.data.dataset).digest
    ids, positives = records.table["id"].to_pylist(), records.table["positives"].to_pylist()
    assert records.table["hard_negatives"][-1].as_py() == []
    embedder = fresh(config)
    candidates = Candidates(config.data.mbeir, records.split, config.data.candidate_cache)
    source = BatchSource(changed, "direct", records, traces={}, encoder=embedder.encoder(), candidates=candidates)
    batch = source.make_batch(0)
    of_query = {identifier: {positives[(i + n) % len(ids)][0] for n in (1, 2, 3)} for i, identifier in enumerate(ids[:-1])}
    negatives = batch.dids[len(batch.ids) :]
    assert len(negatives) == sum(2 for identifier in batch.ids if identifier in of_query)
    for identifier in batch.ids:
        if identifier in of_query:
            own, negatives = set(negatives[:2]), negatives[2:]
            assert len(own) == 2
            assert own <= of_query[identifier]
    assert source.make_batch(0).dids == batch.dids
    assert len(source.sampler.epoch(0)) == len(source.sampler.epoch(1))


def test_a_run_resumes_only_with_the_same_mined_negatives(config: TrainConfig, mined_file: Path, tmp_path: Path) -> None:
    one = settings_for(config, mined_file)
    moved = tmp_path / "moved.parquet"
    moved.write_bytes(mined_file.read_bytes())
    two = settings_for(config, moved)
    conditions = [run_conditions(c, "trace", training_records(c.data), 6) for c in (one, two)]
    assert conditions[0] == conditions[1]  # the path does not matter
    records = Records.load(config.data.dataset)
    write_mined(moved, [{"id": records.table["id"][0].as_py(), "mined_negatives": ["9:1"], "scores": [0.1]}], {})
    assert run_conditions(two, "trace", training_records(two.data), 6) != conditions[0]
    old = run_conditions(config, "trace", records, 6)  # those of runs from before these settings
    assert not {"mined", "mined_per_query"} & old["settings"]["data"].keys()
    assert old["settings"]["data"]["hard_negatives"] == 0


def test_a_file_that_is_missing_damaged_or_of_other_queries_is_an_error(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        training_records(settings_for(config, tmp_path / "absent.parquet").data)
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(InputError, match="cannot be read"):
        training_records(settings_for(config, tmp_path / "damaged.parquet").data)
    write_mined(tmp_path / "other.parquet", [{"id": "train/cirr/task7/8:999999", "mined_negatives": ["9:1"]}], {})
    with pytest.raises(InputError, match="no negative of any query"):
        training_records(settings_for(config, tmp_path / "other.parquet").data)
    with pytest.raises(ValidationError, match=r"needs data\.mined"):
        DataSettings(dataset="x", mbeir=tmp_path, hard_negatives="mined")
