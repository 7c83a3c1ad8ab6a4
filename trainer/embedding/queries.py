"""Embeds a split's queries with any number of workers, each query once for all routings that need the same embedding.

A query's embedding depends only on the trace that it follows. So the traces and bypass embeddings that one routing computed
serve every other routing of the same embedder:

* if the student's own route reasons, its trace is the one that it writes when it is forced to reason;
* with `pre` pooling, the prefill of a query that reasons computes its bypass embedding too.

The student's own routes are embedded in fixed windows of a file, so the numbers do not depend on the number of workers. Other
routings embed only what is missing, in batches of another composition; in float32 the vectors then differ in the last digits
(by 2e-6 in tests), so an entry of a float16 file may be the neighbouring float16 (2.4e-4 away at 0.5).
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np

from pipeline.mbeir.image_store import ImageStore
from schemas.mbeir import DatasetTask
from schemas.training import RouteChoice, TrainConfig
from trainer.data.encoding import EncodedSequence
from trainer.data.exclusions import Exclusion
from trainer.data.unreadable import UnreadableImage
from trainer.embedding.embed import QueryFile, StudentQuery
from trainer.embedding.query_embedding import QueryEmbedding, QueryEngine

logger = logging.getLogger(__name__)

WINDOW: Final = 1_024
"""Queries that go to a worker together; it holds all their images."""

Place = tuple[DatasetTask, str]
"""Identifies a query: its dataset-task and its qid."""


class QueryUnit(NamedTuple):
    """Queries of one file that are embedded together. `written`: the traces to follow; None to let the route decide."""

    places: tuple[Place, ...]
    queries: tuple[StudentQuery, ...]
    route: RouteChoice
    written: tuple[str, ...] | None = None


class QueryPart(NamedTuple):
    """The result of a unit, with vectors in float16.

    seconds: the worker's time, including reading and decoding.
    """

    embeddings: dict[Place, QueryEmbedding]
    left_out: dict[Place, Exclusion]
    seconds: float


class QueryCosts(NamedTuple):
    """The cost of embedding a query file, and how its queries were routed.

    seconds: of all workers together, divided by their number. 0 if some embeddings were reused: the cost of this routing alone
    was not measured then.
    """

    queries: int
    reasoned: int
    cut: int
    """Traces that did not end by themselves."""
    tokens: int
    seconds: float
    p50_s: float
    p95_s: float
    fell_back: int = 0
    """Queries that reasoned and got their bypass embedding (`adaptive.fallback`)."""

    @property
    def think_rate(self) -> float:
        return self.reasoned / self.queries if self.queries else 0.0

    @property
    def rate(self) -> float:
        """Queries per second."""
        return self.queries / self.seconds if self.seconds else 0.0

    @classmethod
    def of(cls, embeddings: Sequence[QueryEmbedding], seconds: float) -> QueryCosts:
        latencies = np.array([one.seconds for one in embeddings] or [0.0])
        return cls(
            queries=len(embeddings),
            reasoned=sum(one.reasoned for one in embeddings),
            cut=sum(not one.ended for one in embeddings),
            tokens=sum(one.tokens for one in embeddings),
            seconds=seconds,
            p50_s=float(np.percentile(latencies, 50)),
            p95_s=float(np.percentile(latencies, 95)),
            fell_back=sum(one.fell_back for one in embeddings),
        )


class QueryEmbedder:
    """Embeds units with one student, in the process that loaded it."""

    def __init__(self, engine: QueryEngine, config: TrainConfig, images: ImageStore) -> None:
        self._engine, self._images = engine, images
        self._rows, self._skip = config.evaluation.candidate_batch_size, config.data.skip_unreadable

    def embed_unit(self, unit: QueryUnit) -> QueryPart:
        """Raises InputError for an image that cannot be read, unless such queries are left out."""
        began = time.perf_counter()
        sequences: dict[Place, EncodedSequence] = {}
        left_out: dict[Place, Exclusion] = {}
        for place, query, trace in zip(unit.places, unit.queries, unit.written or [""] * len(unit.places), strict=True):
            try:
                sequences[place] = query.encode(self._engine.encoder, self._images, trace)
            except UnreadableImage as error:
                if not self._skip:
                    raise
                left_out[place] = error.exclusion
        readable = list(sequences.values())
        if unit.written is not None:
            embeddings = self._embed_written(readable)
        else:
            embeddings = self._engine.embed(readable, route=unit.route)
        by_place = {place: _compact(one) for place, one in zip(sequences, embeddings, strict=True)}
        return QueryPart(by_place, left_out, time.perf_counter() - began)

    def _embed_written(self, sequences: Sequence[EncodedSequence]) -> list[QueryEmbedding]:
        """Embeds sequences after the traces that they carry; the student writes nothing."""
        return [
            QueryEmbedding(vector, bool(one.written), True, one.written, 0.0, 0, 0.0)
            for one, vector in zip(sequences, self._engine.embed_written(sequences, self._rows), strict=True)
        ]


def _compact(embedding: QueryEmbedding) -> QueryEmbedding:
    """In the precision of the files. It also copies: a view of a batch's tensor would keep, and send, the whole batch."""
    bypass = embedding.bypass
    return embedding._replace(vector=embedding.vector.half(), bypass=bypass.half() if bypass is not None else None)


def join_units(units: Sequence[QueryUnit]) -> Iterator[QueryUnit]:
    """Units of several files as one, of at most `WINDOW` queries: an engine that batches by itself is then full throughout."""
    joined: QueryUnit | None = None
    for unit in units:
        if joined is None:
            joined = unit
        elif joined.written is None and unit.written is None and joined.route == unit.route and _fits(joined, unit):
            joined = QueryUnit(joined.places + unit.places, joined.queries + unit.queries, unit.route)
        else:
            yield joined
            joined = unit
    if joined is not None:
        yield joined


def _fits(joined: QueryUnit, unit: QueryUnit) -> bool:
    return len(joined.places) + len(unit.places) <= WINDOW


def split_part(part: QueryPart) -> Iterator[QueryPart]:
    """A part for each file. The seconds are divided by numbers of queries: what each file took is not known."""
    tasks = [place[0] for place in (*part.embeddings, *part.left_out)]
    for task in dict.fromkeys(tasks):
        embeddings = {place: one for place, one in part.embeddings.items() if place[0] == task}
        left_out = {place: one for place, one in part.left_out.items() if place[0] == task}
        yield QueryPart(embeddings, left_out, part.seconds * tasks.count(task) / len(tasks))


class QueryWorkers(Protocol):
    count: int

    def embed_queries(self, units: Sequence[QueryUnit]) -> Iterator[QueryPart]:
        """The results of the units, in any order."""


class QueryEmbeddings:
    """A split's queries, embedded by one embedder.

    Keeps every embedding in float16; two for a query that reasoned.
    """

    def __init__(self, files: Mapping[DatasetTask, QueryFile], workers: QueryWorkers, *, window: int = WINDOW) -> None:
        self._files, self._workers, self._window = files, workers, window
        self.left_out: dict[Place, Exclusion] = {}
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
        fallback: float | None = None,
        advance: Callable[[int], None] = lambda rows: None,
    ) -> dict[DatasetTask, tuple[list[QueryEmbedding], QueryCosts]]:
        """The embeddings of every file, in its order, and their costs.

        given: whether each query reasons, for ``route="given"``. written: traces to follow; "" for none.
        fallback: see `adaptive.fallback`; what is kept for other routings is without it.
        Queries that cannot be read are removed from `files` and added to `left_out`, if that is allowed.
        """
        places = [(task, query.qid) for task, file in self._files.items() for query in file.queries]
        self._spent.clear()
        self._shared = False
        if written is not None:
            traces = {place: trace for place in places if (trace := written.get(place, ""))}
            embedded = self._embed(list(traces), route, advance, traces)
            embedded |= self._embed_missing([place for place in places if place not in traces], "always-direct", advance)
        elif route == "learned":
            embedded = self._embed(places, route, advance)
            for place, embedding in embedded.items():
                self._keep(place, embedding)
        else:
            flags = given or {}
            reason = {place for place in places if (flags.get(place, False) if route == "given" else route == "always-reason")}
            embedded = self._embed_missing([place for place in places if place in reason], "always-reason", advance)
            embedded |= self._embed_missing([place for place in places if place not in reason], "always-direct", advance)
        seconds = {task: 0.0 if self._shared else self._spent[task] / self._workers.count for task in self._files}
        for task, file in self._files.items():
            file.queries = [query for query in file.queries if (task, query.qid) not in self.left_out]
        of_file = {
            task: [embedded[task, query.qid].fall_back(fallback) for query in file.queries]
            for task, file in self._files.items()
        }
        return {task: (embeddings, QueryCosts.of(embeddings, seconds[task])) for task, embeddings in of_file.items()}

    def _embed_missing(
        self, places: Sequence[Place], route: RouteChoice, advance: Callable[[int], None]
    ) -> dict[Place, QueryEmbedding]:
        """With a forced route. What was embedded before is reused."""
        store = self._direct if route == "always-direct" else self._reasoned
        missing = [place for place in places if place not in store]
        if len(missing) < len(places):
            self._shared = True
            advance(len(places) - len(missing))
        for place, embedding in self._embed(missing, route, advance).items():
            self._keep(place, embedding)
        return {place: store[place] for place in places if place not in self.left_out}

    def _keep(self, place: Place, embedding: QueryEmbedding) -> None:
        if not embedding.reasoned:
            # a stop token as the first token counts as cut only with the student's own route
            self._direct.setdefault(place, embedding._replace(ended=True))
            return
        self._reasoned[place] = embedding
        if embedding.bypass is not None:
            direct = QueryEmbedding(embedding.bypass, False, True, "", embedding.p_direct, 0, embedding.bypass_seconds)
            self._direct.setdefault(place, direct)

    def _embed(
        self,
        places: Sequence[Place],
        route: RouteChoice,
        advance: Callable[[int], None],
        written: Mapping[Place, str] | None = None,
    ) -> dict[Place, QueryEmbedding]:
        units = []
        selected = set(places)
        for task, file in self._files.items():
            queries = [query for query in file.queries if (task, query.qid) in selected]
            for part in (queries[start : start + self._window] for start in range(0, len(queries), self._window)):
                of_part = tuple((task, query.qid) for query in part)
                traces = tuple(written[place] for place in of_part) if written is not None else None
                units.append(QueryUnit(of_part, tuple(map(file.student_query, part)), route, traces))
        embedded: dict[Place, QueryEmbedding] = {}
        for done in self._workers.embed_queries(units):
            embedded |= done.embeddings
            self.left_out |= done.left_out
            of_unit = [*done.embeddings, *done.left_out]
            self._spent[of_unit[0][0]] += done.seconds
            advance(len(of_unit))
        logger.info("%d queries embedded, route %s", len(embedded), route if written is None else "of given traces")
        return embedded
