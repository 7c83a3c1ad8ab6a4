"""Who embeds candidate pools and queries: this process, or Ray actors that hold a copy of the model each.

Parts of a pool are independent, and a part is written by whoever gathers it; so the files are the same whoever embeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np

from pipeline.dataset.training_store import training_store
from pipeline.mbeir.pools import CandidatePool
from schemas.mbeir import Candidate
from schemas.training import TrainConfig
from trainer.embedding.embed import PoolEmbedder, PoolPart, Range
from trainer.embedding.queries import QueryEmbedder, QueryPart, QueryUnit
from trainer.model.embedder import Embedder


class EmbedderSpec(NamedTuple):
    """A model as any process can load it: a checkpoint's directory, or the untrained base (None)."""

    config: TrainConfig
    model: Path | None

    def load(self) -> Embedder:
        """For use: its adapter is folded into its weights."""
        import torch  # noqa: PLC0415 (actors import it where they run)

        from trainer.distributed import ProcessGroup  # noqa: PLC0415

        device = ProcessGroup.join(self.config.device).device
        if self.model is not None:
            return Embedder.load(self.model, self.config.model, pool=self.config.model.pooling).folded().to(device)
        torch.manual_seed(self.config.seed)
        return Embedder.create(self.config.model, self.config.data.prompts).folded().eval().to(device)

    def embedder(self, loaded: Embedder | None = None) -> PoolEmbedder:
        return PoolEmbedder(
            loaded or self.load(),
            training_store(self.config),
            rows=self.config.evaluation.candidate_batch_size,
            max_chars=self.config.data.max_candidate_chars,
            skip=self.config.data.skip_unreadable,
        )


class Workers(Protocol):
    count: int
    """How many embed at once."""

    def embed(self, pool: CandidatePool, ranges: Sequence[Range]) -> Iterator[tuple[Range, PoolPart]]:
        """The vectors of these rows of a pool, range by range, in any order."""

    def queries(self, units: Sequence[QueryUnit]) -> Iterator[QueryPart]:
        """The embeddings of these queries, unit by unit, in any order."""


class LocalPoolEmbedder:
    """This process embeds."""

    count = 1

    def __init__(self, worker: PoolEmbedder, config: TrainConfig) -> None:
        self._worker, self._config = worker, config

    def embed(self, pool: CandidatePool, ranges: Sequence[Range]) -> Iterator[tuple[Range, PoolPart]]:
        for one in ranges:
            yield one, self._worker.part(pool_rows(pool, one))

    def queries(self, units: Sequence[QueryUnit]) -> Iterator[QueryPart]:
        embedder = QueryEmbedder(self._worker.embedder, self._config, self._worker.images)
        yield from map(embedder.part, units)


class RayPoolEmbedder(AbstractContextManager["RayPoolEmbedder"]):
    """Ray actors embed; a cluster's, where RAY_ADDRESS names one. Each gets a GPU where the device is one."""

    def __init__(self, source: EmbedderSpec, workers: int, *, gpu: bool) -> None:
        import ray  # noqa: PLC0415

        from pipeline.serving.ray_session import start_ray  # noqa: PLC0415

        self._ray = ray
        self._started = not ray.is_initialized()
        start_ray()
        actor = ray.remote(_Actor).options(num_gpus=1 if gpu else 0)
        self._actors = [actor.remote(source) for _ in range(workers)]
        self.count = workers

    def embed(self, pool: CandidatePool, ranges: Sequence[Range]) -> Iterator[tuple[Range, PoolPart]]:
        from ray.util import ActorPool  # noqa: PLC0415

        def ask(actor: Any, one: Range) -> Any:
            return actor.part.remote(pool, one)

        yield from ActorPool(self._actors).map_unordered(ask, list(ranges))

    def queries(self, units: Sequence[QueryUnit]) -> Iterator[QueryPart]:
        from ray.util import ActorPool  # noqa: PLC0415

        def ask(actor: Any, unit: QueryUnit) -> Any:
            return actor.queries.remote(unit)

        yield from ActorPool(self._actors).map_unordered(ask, list(units))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        if self._started:
            self._ray.shutdown()


class _Actor:
    def __init__(self, source: EmbedderSpec) -> None:
        self._worker = source.embedder()
        self._queries = QueryEmbedder(self._worker.embedder, source.config, self._worker.images)

    def part(self, pool: CandidatePool, one: Range) -> tuple[Range, PoolPart]:
        return one, self._worker.part(pool_rows(pool, one))

    def queries(self, unit: QueryUnit) -> QueryPart:
        return self._queries.part(unit)


def pool_rows(pool: CandidatePool, one: Range) -> list[Candidate]:
    table = pool.fetch_table(np.arange(one.start, one.stop, dtype=np.int64))
    return [Candidate.model_validate(row) for row in table.to_pylist()]
