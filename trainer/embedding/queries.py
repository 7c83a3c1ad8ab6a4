"""Embeds the queries of a split: by whichever worker is free, each of them once however many routings ask for it.

A query's embedding depends on the trace that it follows and on nothing else. So the traces that one routing has had written,
and the bypass embeddings that it has found, serve every other routing of the same embedder:

* where the student's own route reasons, its trace is the one that it writes when it is told to reason;
* with `pre` pooling the prefill of a query that reasons gives its bypass embedding too.

The student's own routes are embedded in windows of a file whoever embeds them: the numbers are the same for any number of
workers. Other routings have only what is missing embedded, in other batches than if all were; in float32 the vectors then
differ in the last digits (by 2e-6 in tests), so an entry of a float16 file may be the next float16 (2.4e-4 away at 0.5).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch

from pipeline.mbeir.images import ImageStore
from schemas.mbeir import DatasetTask
from schemas.training import RouteChoice, TrainConfig
from trainer.data.encoding import EncodedSequence
from trainer.data.unreadable import LeftOut, Unreadable
from trainer.embedding.adaptive import AdaptiveEmbedder, QueryEmbedding
from trainer.embedding.embed import Asked, QueryFile
from trainer.model.embedder import Embedder

WINDOW: Final = 1_024
"""Queries whose images are held at once, and that go to a worker together."""

Place = tuple[DatasetTask, str]
"""A query: its file and its qid."""


class QueryUnit(NamedTuple):
    """Queries of one file that are embedded together. `written`: the traces to follow; the route decides where it is None."""

    places: tuple[Place, ...]
    asked: tuple[Asked, ...]
    route: RouteChoice
    written: tuple[str, ...] | None = None


class QueryPart(NamedTuple):
    """What a unit gave, by its places but for those that were left out, with vectors in float16.

    seconds: of the worker, reading and decoding included.
    """

    found: dict[Place, QueryEmbedding]
    left_out: dict[Place, LeftOut]
    seconds: float


class QueryCosts(NamedTuple):
    """What embedding a query file took, and how its queries were routed.

    seconds: of all workers together, divided by their number; 0 where some embeddings were there already, so that what the
    routing costs by itself was not measured.
    """

    queries: int
    reasoned: int
    cut: int
    """Traces that did not end by themselves."""
    tokens: int
    seconds: float
    p50_s: float
    p95_s: float

    @property
    def think_rate(self) -> float:
        return self.reasoned / self.queries if self.queries else 0.0

    @property
    def rate(self) -> float:
        """Queries per second."""
        return self.queries / self.seconds if self.seconds else 0.0

    @classmethod
    def of(cls, found: Sequence[QueryEmbedding], seconds: float) -> QueryCosts:
        each = np.array([one.seconds for one in found] or [0.0])
        return cls(
            len(found),
            sum(one.reasoned for one in found),
            sum(not one.ended for one in found),
            sum(one.tokens for one in found),
            seconds,
            float(np.percentile(each, 50)),
            float(np.percentile(each, 95)),
        )


class QueryEmbedder:
    """Embeds units with one student, where it runs."""

    def __init__(self, embedder: Embedder, config: TrainConfig, images: ImageStore) -> None:
        self._adaptive, self._images = AdaptiveEmbedder(embedder, config.adaptive), images
        self._rows, self._skip = config.evaluation.candidate_batch_size, config.data.skip_unreadable

    def part(self, unit: QueryUnit) -> QueryPart:
        """Raises InputError for an image that cannot be read, unless such queries are left out."""
        began = time.perf_counter()
        rows: dict[Place, EncodedSequence] = {}
        left_out: dict[Place, LeftOut] = {}
        for place, asked, trace in zip(unit.places, unit.asked, unit.written or [""] * len(unit.places), strict=True):
            try:
                rows[place] = asked.row(self._adaptive.encoder, self._images, trace)
            except Unreadable as error:
                if not self._skip:
                    raise
                left_out[place] = error.left_out
        kept = list(rows.values())
        found = self._after(kept) if unit.written is not None else self._adaptive.embed(kept, route=unit.route)
        compact = {place: _compact(one) for place, one in zip(rows, found, strict=True)}
        return QueryPart(compact, left_out, time.perf_counter() - began)

    @torch.inference_mode()
    def _after(self, rows: Sequence[EncodedSequence]) -> list[QueryEmbedding]:
        """After the rows' own traces: no word is the student's."""
        embedder, encoder = self._adaptive.embedder.eval(), self._adaptive.encoder
        traces = [row.written for row in rows]
        found: dict[int, QueryEmbedding] = {}
        for chunk in encoder.chunks(rows, self._rows, 1 << 20) if rows else []:
            vectors, _ = embedder(chunk.to(embedder.device), labelled=False)
            for place, vector in zip(chunk.places.tolist(), vectors.cpu(), strict=True):
                found[place] = QueryEmbedding(vector, bool(traces[place]), True, traces[place], 0.0, 0, 0.0)
        return [found[place] for place in range(len(rows))]


def _compact(one: QueryEmbedding) -> QueryEmbedding:
    """As it is saved. A vector of its own, too: one of a batch's would keep, and send, the whole batch."""
    return one._replace(vector=one.vector.half(), bypass=one.bypass.half() if one.bypass is not None else None)


class QueryWorkers(Protocol):
    count: int

    def queries(self, units: Sequence[QueryUnit]) -> Iterator[QueryPart]:
        """In any order."""


class QueryEmbeddings:
    """The queries of one split by one embedder. Holds 2 bytes a dimension for each embedding, two for queries that reasoned."""

    def __init__(self, files: Mapping[DatasetTask, QueryFile], workers: QueryWorkers, *, window: int = WINDOW) -> None:
        self._files, self._workers, self._window = files, workers, window
        self.left_out: dict[Place, LeftOut] = {}
        self._direct: dict[Place, QueryEmbedding] = {}
        self._reasoned: dict[Place, QueryEmbedding] = {}
        self._spent: dict[DatasetTask, float] = defaultdict(float)
        self._shared = False

    def embed(
        self,
        route: RouteChoice,
        *,
        given: Mapping[Place, bool] | None = None,
        written: Mapping[Place, str] | None = None,
        advance: Callable[[int], None] = lambda rows: None,
    ) -> dict[DatasetTask, tuple[list[QueryEmbedding], QueryCosts]]:
        """Of every file, in its order. Queries that cannot be read leave their file, where that is allowed.

        given: which reason, for ``route="given"``. written: traces to follow; "" for none.
        """
        places = [(task, query.qid) for task, file in self._files.items() for query in file.queries]
        self._spent.clear()
        self._shared = False
        if written is not None:
            traces = {place: trace for place in places if (trace := written.get(place, ""))}
            found = self._ask(list(traces), route, advance, traces)
            found |= self._each([place for place in places if place not in traces], "always-direct", advance)
        elif route == "learned":
            found = self._ask(places, route, advance)
            for place, one in found.items():
                self._keep(place, one)
        else:
            reasons = given or {}
            told = {place for place in places if (reasons.get(place, False) if route == "given" else route == "always-reason")}
            found = self._each([place for place in places if place in told], "always-reason", advance)
            found |= self._each([place for place in places if place not in told], "always-direct", advance)
        seconds = {task: 0.0 if self._shared else self._spent[task] / self._workers.count for task in self._files}
        for task, file in self._files.items():
            file.queries = [query for query in file.queries if (task, query.qid) not in self.left_out]
        of_file = {task: [found[task, query.qid] for query in file.queries] for task, file in self._files.items()}
        return {task: (rows, QueryCosts.of(rows, seconds[task])) for task, rows in of_file.items()}

    def _each(self, places: Sequence[Place], route: RouteChoice, advance: Callable[[int], None]) -> dict[Place, QueryEmbedding]:
        """With the route forced. What is there already is not embedded again."""
        store = self._direct if route == "always-direct" else self._reasoned
        owed = [place for place in places if place not in store]
        if len(owed) < len(places):
            self._shared = True
            advance(len(places) - len(owed))
        for place, one in self._ask(owed, route, advance).items():
            self._keep(place, one)
        return {place: store[place] for place in places if place not in self.left_out}

    def _keep(self, place: Place, one: QueryEmbedding) -> None:
        if not one.reasoned:
            self._direct.setdefault(
                place, one._replace(ended=True)
            )  # a stop token as first token is cut only by the student's route
            return
        self._reasoned[place] = one
        if one.bypass is not None:
            direct = QueryEmbedding(one.bypass, False, True, "", one.p_direct, 0, one.bypass_seconds)
            self._direct.setdefault(place, direct)

    def _ask(
        self,
        places: Sequence[Place],
        route: RouteChoice,
        advance: Callable[[int], None],
        written: Mapping[Place, str] | None = None,
    ) -> dict[Place, QueryEmbedding]:
        units = []
        wanted = set(places)
        for task, file in self._files.items():
            queries = [query for query in file.queries if (task, query.qid) in wanted]
            for part in (queries[start : start + self._window] for start in range(0, len(queries), self._window)):
                of_part = tuple((task, query.qid) for query in part)
                traces = tuple(written[place] for place in of_part) if written is not None else None
                units.append(QueryUnit(of_part, tuple(map(file.asked, part)), route, traces))
        found: dict[Place, QueryEmbedding] = {}
        for done in self._workers.queries(units):
            found |= done.found
            self.left_out |= done.left_out
            every = [*done.found, *done.left_out]
            self._spent[every[0][0]] += done.seconds
            advance(len(every))
        return found
