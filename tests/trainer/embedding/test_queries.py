"""Each query is embedded once for all routings, with the results of each routing alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.mbeir.image_store import ImageStore
from pipeline.mbeir.layout import Layout
from schemas.mbeir import DATASET_TASKS, DatasetTask
from schemas.record import ImageReason
from schemas.training import Pooling, RouteChoice, TrainConfig
from tests.trainer.conftest import fresh, mixed_routes
from trainer.data.exclusions import Exclusion
from trainer.embedding.embed import QueryFile, StudentQuery
from trainer.embedding.queries import Place, QueryEmbedder, QueryEmbeddings, QueryPart, QueryUnit, join_units, split_part
from trainer.embedding.query_embedding import QueryEmbedding
from trainer.embedding.transformers_engine import AdaptiveEmbedder


class Counting:
    """A worker that records its queries and returns results in another order."""

    count = 2

    def __init__(self, embedder: QueryEmbedder) -> None:
        self._embedder = embedder
        self.asked: list[tuple[str, Place]] = []

    def embed_queries(self, units: Sequence[QueryUnit]) -> Iterator[QueryPart]:
        for unit in reversed(units):
            kind = "written" if unit.written is not None else unit.route
            self.asked += [(kind, place) for place in unit.places]
            yield self._embedder.embed_unit(unit)

    def taken(self) -> dict[str, int]:
        kinds = [kind for kind, _ in self.asked]
        self.asked.clear()
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["pre", "token"])
def test_routings_share_embeddings_without_changing_them(config: TrainConfig, tiny_world: Path, pool: Pooling) -> None:
    data = config.data.model_copy(update={"mbeir": tiny_world})
    config = config.model_copy(update={"data": data})
    layout, images = Layout.open(tiny_world), ImageStore(tiny_world)
    files = {task: QueryFile(layout, task, "val") for task in DATASET_TASKS if layout.queries("val", task).is_file()}
    embedder = fresh(config, pooling=pool).eval()
    alone = AdaptiveEmbedder(embedder, config.adaptive)
    rows = {task: file.encode(alone.encoder, images) for task, file in files.items()}
    mixed_routes(embedder, [row for of_file in rows.values() for row in of_file])
    worker = Counting(QueryEmbedder(alone, config, images))
    shared = QueryEmbeddings(files, worker, window=12)
    places = [(task, query.qid) for task, file in files.items() for query in file.queries]
    lot = {place: number % 2 == 0 for number, place in enumerate(places)}
    traces = {place: "Answer: the same\n" for number, place in enumerate(places) if number % 3 == 0}

    def same(route: RouteChoice, given: dict[Place, bool] | None, *, exact: bool) -> list[QueryEmbedding]:
        got = shared.embed(route, given=given)
        every: list[QueryEmbedding] = []
        for task, of_file in rows.items():
            flags = [given[task, query.qid] for query in files[task].queries] if given is not None else None
            wanted = alone.embed(of_file, route=route, given=flags)
            found, costs = got[task]
            for one, other in zip(found, wanted, strict=True):
                assert (one.reasoned, one.ended, one.trace, one.tokens) == (
                    other.reasoned, other.ended, other.trace, other.tokens,
                )  # fmt: skip
                assert one.p_direct == pytest.approx(other.p_direct, abs=1e-5)
                if exact:
                    assert torch.equal(one.vector, other.vector.half())
                else:
                    # one step of float16 below 0.5
                    np.testing.assert_allclose(
                        one.vector.float().numpy(), other.vector.half().float().numpy(), rtol=0, atol=2.5e-4
                    )
            assert (costs.queries, costs.reasoned) == (len(wanted), sum(one.reasoned for one in wanted))
            assert bool(costs.seconds) == exact
            assert costs.p95_s > 0
            every += found
        return every

    learned = dict(zip(places, same("learned", None, exact=True), strict=True))
    thinking = {place for place, one in learned.items() if one.reasoned}
    assert 0 < len(thinking) < len(places)
    assert worker.taken() == {"learned": len(places)}

    same("given", lot, exact=False)
    owed = {"always-reason": sum(lot[place] and place not in thinking for place in places)}
    if (
        pool == "token"
    ):  # the bypass embedding is the embedding token's state, which the prefill of a query that reasons does not compute
        owed["always-direct"] = sum(not lot[place] and place in thinking for place in places)
    assert worker.taken() == owed

    after = shared.embed("given", written=traces)
    wanted = [one.trace for found, _ in after.values() for one in found]
    assert wanted == [traces.get(place, "") for place in places]
    taken = worker.taken()
    assert taken.pop("written") == len(traces)
    assert pool == "token" or not taken
    same("always-direct", None, exact=False)
    assert pool == "token" or not worker.taken()
    worker.taken()
    same("always-reason", None, exact=False)
    assert worker.taken()["always-reason"] < len(places) - len(thinking)
    same("given", lot, exact=False)
    assert not worker.taken()

    if pool == "pre":  # a fallback changes no embedding that is kept, and costs none
        own = {place: place in thinking for place in places}
        fallen = [one for found, _ in shared.embed("given", given=own, fallback=0.0).values() for one in found]
        assert [one.fell_back for one in fallen] == [place in thinking for place in places]
        assert all(one.bypass is one.vector for one in fallen if one.fell_back)
        same("given", own, exact=False)
        assert not worker.taken()


def test_units_of_several_files_are_joined_and_their_parts_split() -> None:
    tasks = [task for task in DATASET_TASKS if task.name in ("cirr_task7", "webqa_task1", "nights_task4")]

    def unit(task: DatasetTask, count: int, route: RouteChoice = "learned", written: str | None = None) -> QueryUnit:
        places = tuple((task, f"q{i}") for i in range(count))
        queries = tuple(StudentQuery(qid, "", "", None) for _, qid in places)
        return QueryUnit(places, queries, route, None if written is None else (written,) * count)

    first, second, third = unit(tasks[0], 600), unit(tasks[1], 424), unit(tasks[2], 1)
    forced, given = unit(tasks[0], 2, "always-reason"), unit(tasks[1], 2, written="Answer: it")
    joined = list(join_units([first, second, third, forced, given, given]))
    assert [len(one.places) for one in joined] == [1024, 1, 2, 2, 2]
    assert (joined[0].places, joined[0].queries) == (first.places + second.places, first.queries + second.queries)
    assert joined[1:] == [third, forced, given, given]
    embedding = QueryEmbedding(torch.zeros(2), False, True, "", 1.0, 0, 0.1)
    places = joined[0].places
    lost = {places[-1]: Exclusion("q", "i.jpg", ImageReason.MISSING, "no such file")}
    parts = list(split_part(QueryPart(dict.fromkeys(places[:-1], embedding), lost, 10.24)))
    assert [len(part.embeddings) for part in parts] == [600, 423]
    assert [part.left_out for part in parts] == [{}, lost]
    assert [part.seconds for part in parts] == pytest.approx([6.0, 4.24])
