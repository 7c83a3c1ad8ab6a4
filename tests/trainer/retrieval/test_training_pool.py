"""`mine` and `utility` where images cannot be read: what is left out is said, and too much of it keeps the files that are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.mbeir.pools import CandidatePool
from schemas.errors import InputError
from schemas.mbeir import unhash_did
from schemas.mining import MiningSettings
from schemas.training import TrainConfig
from trainer.data.dataset import Records
from trainer.data.exclusions import Exclusion, load_exclusions
from trainer.embedding.embed import PoolPart, Range
from trainer.embedding.queries import QueryPart, QueryUnit
from trainer.embedding.query_embedding import QueryEmbedding
from trainer.retrieval import recall_queries as recall
from trainer.retrieval import training_pool
from trainer.retrieval.mine import mine
from trainer.retrieval.training_pool import QUERIES
from trainer.retrieval.utility import measure_utility


class Stand:
    """In the place of workers: random vectors, and no image of a query that can be read unless the disk is mounted."""

    count = 1

    def __init__(self, *, mounted: bool, lost: Sequence[int] = ()) -> None:
        """lost: candidates of the first part that are left out."""
        self.mounted, self._lost, self._rng = mounted, lost, np.random.default_rng(0)

    def embed_ranges(self, pool: CandidatePool, ranges: list[Range]) -> Iterator[tuple[Range, PoolPart]]:
        for span in ranges:
            lost = self._lost if not span.start else ()
            names = {at: unhash_did(int(pool.hashed_dids[at])) for at in lost}
            left_out = {at: Exclusion(name, "gone.jpg", "missing", "no such file") for at, name in names.items()}
            vectors = self._rng.standard_normal((span.stop - span.start - len(left_out), 8)).astype(np.float16)
            yield span, PoolPart(vectors, left_out)

    def embed_queries(self, units: Sequence[QueryUnit]) -> Iterator[QueryPart]:
        for unit in units:
            embeddings, left_out = {}, {}
            for place, query in zip(unit.places, unit.queries, strict=True):
                if query.image and not self.mounted:
                    left_out[place] = Exclusion(query.qid, query.image, "missing", "no such file")
                else:
                    vector = torch.from_numpy(self._rng.standard_normal(8)).half()
                    embeddings[place] = QueryEmbedding(vector, False, True, "", 0.0, 0, 0.0)
            yield QueryPart(embeddings, left_out, 0.0)


def with_data(config: TrainConfig, **changes: object) -> TrainConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"skip_unreadable": True, **changes})})


def run_mine(config: TrainConfig, out: Path, workers: Any) -> Any:
    return mine(config, "trace", out, out, settings=MiningSettings(), workers=workers)


def run_utility(config: TrainConfig, out: Path, workers: Any) -> Any:
    dataset = config.data.dataset
    return measure_utility(config, "trace", out, out, dataset=dataset, sample=50, by_failure=True, workers=workers)


@pytest.fixture(autouse=True)
def weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_pool, "fingerprint", lambda model: "0123456789abcdef")


@pytest.mark.parametrize("run", [run_mine, run_utility])
def test_a_disk_that_is_not_mounted_replaces_nothing(config: TrainConfig, tmp_path: Path, run: Any) -> None:
    records = Records.load(config.data.dataset)
    asked = sum(bool(images) for images in records.query_images())
    share = asked / len(records)
    assert 0.2 < share < 1
    made = run(with_data(config), tmp_path, Stand(mounted=True))
    assert (made.notices, made.report.unreadable_queries) == ([], 0)
    before = made.file.read_bytes()
    with pytest.raises(InputError, match=rf"only {len(records) - asked} of {len(records)} can be read"):
        run(with_data(config, most_unreadable=share - 0.01), tmp_path, Stand(mounted=False))
    assert made.file.read_bytes() == before
    allowed = run(with_data(config, most_unreadable=1.0), tmp_path, Stand(mounted=False))
    assert (allowed.report.unreadable_queries, allowed.report.queries) == (asked, len(records) - asked)
    assert f"queries left out because their images cannot be read: {asked}" in allowed.notices[0]
    assert {one.name for one in load_exclusions(tmp_path / QUERIES)} <= set(records.table["id"].to_pylist())
    run(with_data(config), tmp_path, Stand(mounted=True))
    assert not (tmp_path / QUERIES).exists()


@pytest.mark.parametrize("run", [run_mine, run_utility])
def test_an_index_that_lacks_candidates_says_so_and_is_looked_at_again(config: TrainConfig, tmp_path: Path, run: Any) -> None:
    made = run(with_data(config), tmp_path, Stand(mounted=True, lost=(0, 1)))
    assert made.report.unreadable_candidates == 2
    assert "candidates left out because their images cannot be read: 2" in made.notices[0]
    before = made.file.read_bytes()
    with pytest.raises(InputError, match="was built without 2 of ") as caught:
        run(with_data(config, most_unreadable=1e-9), tmp_path, Stand(mounted=True))
    (index,) = tmp_path.glob("index-*")
    assert f"remove {index} and run again" in caught.value.remedy
    assert made.file.read_bytes() == before


def test_the_recall_of_an_approximate_index_leaves_out_queries_too(
    config: TrainConfig, small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = SimpleNamespace(prepare=lambda image: image, encode_query=lambda qid, *_, **__: qid)
    embed = lambda rows: [QueryEmbedding(torch.ones(4), False, True, "", 0.0, 0, 0.0) for _ in rows]  # noqa: E731
    monkeypatch.setattr(recall, "AdaptiveEmbedder", lambda *_: SimpleNamespace(encoder=encoder, embed=embed))
    root = tmp_path / "M-BEIR"
    root.mkdir()
    for name in ("cand_pool", "instructions", "query"):
        (root / name).symlink_to(small_world / name)
    said: list[str] = []
    everyone = recall.recall_queries(None, config, "val", notice=said.append)  # type: ignore[arg-type]
    unmounted = with_data(config, mbeir=root, most_unreadable=1.0)
    some = recall.recall_queries(None, unmounted, "val", notice=said.append)  # type: ignore[arg-type]
    assert 0 < len(some) < len(everyone)
    lost = len(everyone) - len(some)
    assert said == [f"recall is measured without {lost} of {len(everyone)} queries, whose images cannot be read"]
    with pytest.raises(InputError, match="can be read"):
        recall.recall_queries(None, with_data(config, mbeir=root, most_unreadable=0.01), "val")  # type: ignore[arg-type]
    refusing = with_data(config, mbeir=root, skip_unreadable=False)
    with pytest.raises(InputError, match=r"data\.skip_unreadable=true"):
        recall.recall_queries(None, refusing, "val")  # type: ignore[arg-type]
