"""A real vLLM engine gives the traces, routes and vectors of the student in transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from pipeline.dataset.training_store import training_store
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.pools import CandidatePool
from schemas.errors import InputError
from schemas.mbeir import DATASET_TASKS
from schemas.training import AdaptiveSettings, Pooling, RouteChoice, TrainConfig
from tests.trainer.conftest import fresh, mixed_routes
from tests.trainer.embedding.test_transformers_engine import some_rows
from trainer.data.encoding import EncodedSequence
from trainer.embedding.embed import QueryFile, Range
from trainer.embedding.pool_embedder import PoolEmbedder
from trainer.embedding.queries import QueryEmbedder, QueryUnit
from trainer.embedding.query_embedding import QueryEmbedding
from trainer.embedding.transformers_engine import AdaptiveEmbedder
from trainer.embedding.vllm_engine import VllmEngine
from trainer.embedding.vllm_engine_start import EngineError
from trainer.embedding.workers import fetch_range
from trainer.model.embedder import Embedder
from trainer.model.whole_weights import write_weights

pytestmark = [pytest.mark.slow, pytest.mark.vllm]
SETTINGS = AdaptiveSettings(max_new_tokens=9, prefill_rows=2, decode_rows=4)
COSINE = 0.9999


class Both(NamedTuple):
    """The same student, twice."""

    pool: Pooling
    embedder: Embedder
    rows: list[EncodedSequence]
    engine: VllmEngine


@pytest.fixture(scope="module", params=["pre", "token"])
def both(request: pytest.FixtureRequest, config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    embedder = fresh(config, pooling=request.param).eval()
    rows = some_rows(embedder.encoder())
    mixed_routes(embedder, rows)
    directory = tmp_path_factory.mktemp("whole")
    write_weights(embedder.fold_adapter(), directory)
    engine = VllmEngine(directory, Embedder.load(directory, weights=False), SETTINGS)
    yield Both(request.param, embedder, rows, engine)
    engine.close()


def check_equal(ours: list[QueryEmbedding], theirs: list[QueryEmbedding]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one.trace, one.tokens, one.reasoned, one.ended) == (other.trace, other.tokens, other.reasoned, other.ended)
        assert float(one.vector @ other.vector) >= COSINE
        assert abs(float(one.vector.norm()) - 1) < 1e-5
        assert one.p_direct == pytest.approx(other.p_direct, abs=1e-4)
        assert one.prompt_tokens == other.prompt_tokens > 0
        assert (one.confidence is None) == (not one.reasoned)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-4)
        assert (one.bypass is None) == (other.bypass is None)
        if one.bypass is not None and other.bypass is not None:
            assert float(one.bypass @ other.bypass) >= COSINE
            assert 0 < one.bypass_seconds <= one.seconds


def test_embeddings_traces_and_routes_are_equal(both: Both) -> None:
    adaptive = AdaptiveEmbedder(both.embedder, SETTINGS)
    flags = [i % 3 == 0 for i in range(len(both.rows))]
    routes: tuple[RouteChoice, ...] = ("learned", "always-direct", "always-reason", "given")
    for route in routes:
        given = flags if route == "given" else None
        ours = both.engine.embed(both.rows, route=route, given=given)
        check_equal(ours, adaptive.embed(both.rows, route=route, given=given))
        if route == "learned":
            assert {one.reasoned for one in ours} == {True, False}


def test_rows_with_traces_and_candidates_are_equal(both: Both) -> None:
    encoder = both.embedder.encoder()
    rows = [EncodedSequence(row.name, row.prompt, row.pictures, "a ring\nday") for row in both.rows]
    rows += [
        encoder.encode_candidate(f"c{i}", "A red cube.", row.pictures[0] if row.pictures else None)
        for i, row in enumerate(rows)
    ]
    cosines = (both.engine.embed_written(rows) * AdaptiveEmbedder(both.embedder, SETTINGS).embed_written(rows, 4)).sum(1)
    assert float(cosines.min()) >= COSINE


def test_a_pool_and_a_query_file_are_equal(both: Both, config: TrainConfig) -> None:
    """As `eval` and `index` embed them: read from M-BEIR, in float16."""
    layout, store = Layout.open(config.data.mbeir), training_store(config)
    tasks = [task for task in DATASET_TASKS if layout.queries("val", task).is_file()]
    task, candidates = tasks[-1], []
    for path in filter(None, (layout.local_pool(one, "val") for one in tasks)):
        with CandidatePool.open(path, config.data.candidate_cache) as pool:
            candidates += fetch_range(pool, Range(0, min(3, len(pool))))
    assert {one.modality.has_image for one in candidates} == {True, False}
    file = QueryFile(layout, task, "val")
    queries = file.queries[:6]
    unit = QueryUnit(tuple((task, one.qid) for one in queries), tuple(map(file.student_query, queries)), "always-reason")
    parts, embedded = [], []
    for engine in (both.engine, None):
        worker = PoolEmbedder(both.embedder, store, batch_size=5, max_chars=200, engine=engine)
        parts.append(worker.embed_part(candidates).vectors.astype(np.float32))
        adaptive = AdaptiveEmbedder(both.embedder, SETTINGS)
        embedded.append(QueryEmbedder(engine or adaptive, config, store).embed_unit(unit).embeddings)
    np.testing.assert_allclose(*parts, atol=5e-4)  # steps of float16
    for place, one in embedded[0].items():
        assert one.trace == embedded[1][place].trace
        np.testing.assert_allclose(one.vector.float(), embedded[1][place].vector.float(), atol=5e-4)


def test_what_a_caller_did_not_wait_for_changes_nothing(both: Both) -> None:
    whole = both.engine.embed(both.rows, route="always-reason")
    next(both.engine.stream(both.rows, route="always-reason"))
    check_equal(both.engine.embed(both.rows, route="always-reason"), whole)


def test_a_row_that_is_too_long_is_an_error_and_the_engine_goes_on(both: Both) -> None:
    long = both.embedder.encoder().encode_query("q", "Find it.", "a red cube " * 9_000, None)
    with pytest.raises(InputError, match=r"vLLM refuses a query or candidate of \d+,\d+ tokens"):
        both.engine.embed([*both.rows, long], route="learned")
    check_equal(both.engine.embed(both.rows), AdaptiveEmbedder(both.embedder, SETTINGS).embed(both.rows))


def test_a_model_that_vllm_does_not_know_is_an_error(tmp_path: Path, config: TrainConfig) -> None:
    embedder = fresh(config).eval()
    write_weights(embedder.fold_adapter(), tmp_path)
    shapes = Embedder.load(tmp_path, weights=False)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["Abacus"]}))
    with pytest.raises(EngineError, match=r"does not start on .*Abacus"):
        VllmEngine(tmp_path, shapes, SETTINGS)
