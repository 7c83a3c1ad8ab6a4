"""Records with mined negatives: batches hold them, resumed runs keep them, wrong files are errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.config import load_config
from schemas.errors import ConfigError, InputError
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


def test_batches_hold_the_verifiers_word(config: TrainConfig, tmp_path: Path) -> None:
    """On the negatives that were drawn; queries without a word on the positive, or on any negative, are not distilled."""
    records = Records.load(config.data.dataset)
    ids, positives = records.table["id"].to_pylist(), records.table["positives"].to_pylist()
    rows = []
    for i, identifier in enumerate(ids):
        dids = [positives[(i + n) % len(ids)][0] for n in (1, 2, 3)]
        yes = [[0.1, 0.2, 0.3], [None, None, 0.3], [None] * 3, [0.1] * 3][i % 4]
        rows.append({"id": identifier, "mined_negatives": dids, "yes": yes, "positive_yes": None if i % 4 == 3 else 0.9})
    write_mined(tmp_path / "mined.parquet", rows, {})
    changed = settings_for(config, tmp_path / "mined.parquet", mined_per_query=3)
    records = training_records(changed.data)
    candidates = Candidates(config.data.mbeir, records.split, config.data.candidate_cache)
    encoder = fresh(config).encoder()
    source = BatchSource(changed, "direct", records, traces={}, encoder=encoder, candidates=candidates)
    batch = source.make_batch(0)
    numbers = [ids.index(identifier) for identifier in batch.ids]
    assert [one.query for one in batch.judged] == [query for query, number in enumerate(numbers) if number % 4 < 2]
    assert batch.judged
    for query, places, yes in batch.judged:
        row = rows[numbers[query]]
        of_did = dict(zip(row["mined_negatives"], row["yes"], strict=True))
        assert (places[0], yes[0]) == (query, pytest.approx(0.9))
        assert list(yes[1:]) == pytest.approx([of_did[batch.dids[place]] for place in places[1:]])
        assert sorted(yes[1:]) == pytest.approx(sorted(p for p in row["yes"] if p is not None))


def test_distillation_needs_mined_negatives(train_file: Path) -> None:
    with pytest.raises(ConfigError, match="distillation_weight needs data.hard_negatives: mined"):
        load_config(train_file, TrainConfig, ("loss.distillation_weight=1",))
