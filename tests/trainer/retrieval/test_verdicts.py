"""The verifier's word on mined negatives, against the oracle's endpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.oracle import Oracle
from pipeline.config import load_config
from pipeline.serving.hosted import hosted_pair
from schemas.config import BuildConfig
from schemas.errors import InputError
from schemas.training import TrainConfig
from trainer.data.dataset import Candidates, Records
from trainer.retrieval.verdicts import Pair, judge_pairs, pass_over_right


def test_each_pair_is_asked_once_and_bypasses_never(
    config: TrainConfig, small_world: Path, tmp_path: Path, oracle: Oracle
) -> None:
    build = load_config(oracle.config(tmp_path, small_world), BuildConfig, ())
    records = Records.load(config.data.dataset)
    items = [records.item(number) for number in (2, 5, 0)]  # every third reasons
    candidates = Candidates(config.data.mbeir, records.split, config.data.candidate_cache)
    dids = [item.positives[0] for item in items]
    pairs = [Pair(item, candidate) for item in items for candidate in candidates.fetch(dids)]
    with hosted_pair(build) as endpoints:
        judged = judge_pairs(build, endpoints, pairs, tmp_path / "verdicts")
        assert [p is None for p in judged] == [False] * 6 + [True] * 3
        known = [p for p in judged if p is not None]
        assert len(set(known)) == 6  # the candidate and the answer both count
        assert all(0.75 <= p <= 1 for p in known)  # the oracle's
        asked = sum(oracle.answered().values())
        assert asked == 6
        assert judge_pairs(build, endpoints, pairs, tmp_path / "verdicts") == judged
    assert sum(oracle.answered().values()) == asked


def test_journals_lie_where_the_config_says_and_apart_from_a_builds(
    config: TrainConfig, small_world: Path, tmp_path: Path, oracle: Oracle
) -> None:
    journals = tmp_path / "journals"
    journals.mkdir()
    of_a_build = journals / "1-build.journal"
    of_a_build.write_text("its writer was killed")
    build = load_config(oracle.config(tmp_path, small_world), BuildConfig, (f"ledger.journal={journals}",))
    records = Records.load(config.data.dataset)
    item = records.item(2)
    candidates = Candidates(config.data.mbeir, records.split, config.data.candidate_cache).fetch(item.positives[:1])
    with hosted_pair(build) as endpoints:
        judge_pairs(build, endpoints, [Pair(item, candidates[0])], tmp_path / "verdicts")
    assert of_a_build.is_file()
    assert not (tmp_path / "verdicts" / "journals").exists()
    assert [path.name.partition("-")[0] for path in journals.iterdir() if path.is_dir()] == ["verdicts"]


def test_a_verifier_that_says_nothing_is_an_error(config: TrainConfig, small_world: Path, tmp_path: Path) -> None:
    records = Records.load(config.data.dataset)
    (candidate,) = Candidates(config.data.mbeir, records.split, config.data.candidate_cache).fetch(
        records.item(2).positives[:1]
    )
    with Oracle(tmp_path / "refusing.log", refuse="Verify") as refusing:
        build = load_config(refusing.config(tmp_path, small_world), BuildConfig, ())
        with hosted_pair(build) as endpoints, pytest.raises(InputError, match="no usable answer to any of 1 questions"):
            judge_pairs(build, endpoints, [Pair(records.item(2), candidate)], tmp_path / "verdicts")


def test_what_it_calls_right_is_no_negative() -> None:
    row = {"id": "q", "mined_negatives": ["a", "b", "c"], "scores": [0.9, 0.8, 0.7], "positive_score": 0.95}
    assert pass_over_right(row, [0.51, None, 0.5], 0.5) == {
        "id": "q", "mined_negatives": ["b", "c"], "scores": [0.8, 0.7], "positive_score": 0.95, "yes": [None, 0.5],
    }  # fmt: skip
