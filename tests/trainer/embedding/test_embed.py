"""Pools, embedded by one worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.dataset.training_store import training_store
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.pools import CandidatePool
from schemas.errors import InputError
from schemas.mbeir import DATASET_TASKS, hash_did
from schemas.training import TrainConfig
from tests.trainer.conftest import fresh
from trainer.data.encoding import SequenceEncoder
from trainer.embedding.embed import PoolPart, Range, embed_pool
from trainer.embedding.pool_embedder import AHEAD, PoolEmbedder
from trainer.embedding.workers import fetch_range
from trainer.retrieval.index import Index, IndexMetadata


@pytest.mark.slow
def test_candidates_are_prepared_a_few_groups_ahead_with_the_same_vectors(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout.open(config.data.mbeir)
    found = [path for task in DATASET_TASKS if (path := layout.local_pool(task, "val")) is not None and path.is_file()]
    candidates = []
    for path in found:
        with CandidatePool.open(path, config.data.candidate_cache) as pool:
            candidates += fetch_range(pool, Range(0, min(6, len(pool))))
    assert {one.modality.has_image for one in candidates} == {True, False}
    embedder = fresh(config).eval()
    size = 2
    assert len(candidates) > 3 * AHEAD * size
    worker = PoolEmbedder(embedder, training_store(config), batch_size=size, max_chars=200)
    with torch.inference_mode():  # the reference: all rows are prepared first
        encoded = [worker.encoder.encode_pool_candidate(one, worker.images, max_chars=200, prepare=True) for one in candidates]
        wanted: dict[int, Any] = {}
        for chunk in worker.encoder.make_chunks(encoded, size, 1 << 20):
            vectors, _ = embedder(chunk, labelled=False)
            wanted |= dict(zip(chunk.places.tolist(), vectors.numpy().astype(np.float16), strict=True))

    prepared = used = most = 0
    chunk_of, forward = SequenceEncoder.make_chunk, type(embedder).forward

    def prepare(self: SequenceEncoder, rows: Sequence[Any], *args: Any, **more: Any) -> Any:
        nonlocal prepared, most
        prepared += len(rows)
        most = max(most, prepared - used)
        return chunk_of(self, rows, *args, **more)

    def use(self: Any, chunk: Any, **more: Any) -> Any:
        nonlocal used
        used += len(chunk)
        return forward(self, chunk, **more)

    monkeypatch.setattr(SequenceEncoder, "make_chunk", prepare)
    monkeypatch.setattr(type(embedder), "forward", use)
    got = worker.embed_part(candidates).vectors
    assert prepared == used == len(candidates)
    assert most <= (AHEAD + 1) * size
    np.testing.assert_array_equal(got, np.stack([wanted[i] for i in range(len(candidates))]))


def test_vectors_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    ids = np.array([hash_did(f"8:{n}") for n in range(1, 7)], np.int64)
    given = np.ones((6, 3), np.float16)
    given[4, 1] = np.nan

    def embed(owed: list[Range]) -> Iterator[tuple[Range, PoolPart]]:
        for one in owed:
            yield one, PoolPart(given[one.start : one.stop], {})

    out = tmp_path / "x_embed.npy"
    with pytest.raises(InputError, match=r"x_embed.npy: 1 of 2 vectors are not finite \(NaN or inf\): 8:5"):
        embed_pool(out, embed, ids, part_rows=2)
    assert not out.exists()
    given[4, 1] = 2
    embed_pool(out, embed, ids, part_rows=2)  # the finite part was kept
    np.testing.assert_array_equal(np.load(out), given)

    index = Index.__new__(Index)
    index.directory, index.vectors, index.ids = tmp_path, given.copy(), ids
    index.metadata = IndexMetadata.model_construct(dim=3, count=6)
    assert index.search(np.ones((1, 3)), 2).positions.shape == (1, 2)
    with pytest.raises(InputError, match="1 of 2 query vectors are not finite.*indices 1"):
        index.search(np.array([[1, 1, 1], [1, np.inf, 1]]), 2)
    index.vectors[3, 0] = np.inf
    with pytest.raises(InputError, match="corpus_embed.npy: 1 of 6 vectors are not finite.*8:4"):
        index.search(np.ones((1, 3)), 2)
