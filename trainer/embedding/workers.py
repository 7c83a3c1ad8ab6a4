"""Embeds candidate pools and queries in this process, or in Ray actors with a copy of the model each.

Parts of a pool are independent, and the process that collects them writes them, so the files do not depend on who embeds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset.training_store import training_store
from pipeline.files.run_log import log_failure, open_run_log
from pipeline.mbeir.image_store import ImageStore
from schemas.mbeir import Candidate
from schemas.training import TrainConfig
from trainer.embedding.embed import PoolPart, Range
from trainer.embedding.pool_embedder import PoolEmbedder
from trainer.embedding.queries import QueryEmbedder, QueryPart, QueryUnit, join_units, split_part
from trainer.embedding.transformers_engine import AdaptiveEmbedder
from trainer.embedding.vllm_engine import VllmEngine
from trainer.model.embedder import Embedder

logger = logging.getLogger(__name__)


class EmbedderSpec(NamedTuple):
    """A model that any process can load: a checkpoint's directory, or the untrained base (None)."""

    config: TrainConfig
    model: Path | None
    images: ImageStore | None = None
    """Where the pictures are [default: the training's store]."""

    def load(self) -> Embedder:
        """For inference: its adapter is folded into its weights."""
        import torch  # noqa: PLC0415 (actors import it on their own node)

        from trainer.data.process_group import ProcessGroup  # noqa: PLC0415

        device = ProcessGroup.join(self.config.device).device
        if self.model is not None:
            return Embedder.load(self.model, self.config.model, pool=self.config.model.pooling).fold_adapter().to(device)
        torch.manual_seed(self.config.seed)
        return Embedder.create(self.config.model, self.config.data.prompts).fold_adapter().eval().to(device)

    def embedder(self, loaded: Embedder | None = None) -> PoolEmbedder:
        """Embeds by the engine that the settings name, or with what is loaded already."""
        engine = None
        if loaded is None and self.config.adaptive.engine == "vllm":
            loaded, engine = self.start_engine()
        return PoolEmbedder(
            loaded or self.load(),
            self.images or training_store(self.config),
            batch_size=self.config.evaluation.candidate_batch_size,
            max_chars=self.config.data.max_candidate_chars,
            skip=self.config.data.skip_unreadable,
            engine=engine,
        )

    def start_engine(self) -> tuple[Embedder, VllmEngine]:
        """vLLM's: (the embedder without its weights, what embeds). An adapter's whole weights are made first, in the cache."""
        from trainer.data.process_group import takes_gpu  # noqa: PLC0415 (as above)
        from trainer.model.whole_weights import whole_weights  # noqa: PLC0415

        directory = whole_weights(self.config, self.model, self.load)
        pool = self.config.model.pooling
        shapes = Embedder.load(directory, self.config.model, pool=pool, weights=False)
        on_gpu = takes_gpu(self.config.device)
        low = self.config.model.dtype == "bfloat16" or (on_gpu and bool(self.config.model.autocast))
        dtype: Literal["bfloat16", "float32"] = "bfloat16" if low else "float32"
        engine = VllmEngine(directory, shapes, self.config.adaptive, dtype=dtype, gpu=on_gpu, seed=self.config.seed)
        return shapes, engine


class Pool(Protocol):
    """Candidates by position: a `CandidatePool`, or what has the same rows. Picklable."""

    @property
    def path(self) -> Path:
        """For messages."""

    def fetch_table(self, positions: NDArray[np.int64]) -> pa.Table:
        """Rows of `schemas.mbeir.Candidate`, in the order of `positions`."""


class Workers(Protocol):
    count: int
    """How many embed at once."""

    def embed_ranges(self, pool: Pool, ranges: Sequence[Range]) -> Iterator[tuple[Range, PoolPart]]:
        """The vectors of these ranges of a pool, in any order."""

    def embed_queries(self, units: Sequence[QueryUnit]) -> Iterator[QueryPart]:
        """The embeddings of these units, in any order."""


class LocalPoolEmbedder(AbstractContextManager["LocalPoolEmbedder"]):
    """Embeds in this process, or in the processes of its engine, which end with the context."""

    count = 1

    def __init__(self, worker: PoolEmbedder, config: TrainConfig) -> None:
        self._worker, self._config = worker, config

    def embed_ranges(self, pool: Pool, ranges: Sequence[Range]) -> Iterator[tuple[Range, PoolPart]]:
        for span in ranges:
            yield span, self._worker.embed_part(fetch_range(pool, span))

    def embed_queries(self, units: Sequence[QueryUnit]) -> Iterator[QueryPart]:
        embedder = _query_embedder(self._worker, self._config)
        if self._worker.engine is None:
            yield from map(embedder.embed_unit, units)
            return
        for unit in join_units(units):
            yield from split_part(embedder.embed_unit(unit))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._worker.close()


class RayPoolEmbedder(AbstractContextManager["RayPoolEmbedder"]):
    """Embeds in Ray actors: a cluster's, if RAY_ADDRESS names one. Each takes a GPU if `gpu`."""

    def __init__(self, spec: EmbedderSpec, workers: int, *, gpu: bool, logs: Path | None = None) -> None:
        """`logs`: directory for the actors' log files, ``embed-0.log`` and so on."""
        import ray  # noqa: PLC0415

        from pipeline.serving.ray_session import start_ray  # noqa: PLC0415

        self._ray = ray
        self._started = not ray.is_initialized()
        start_ray()
        actor = ray.remote(_Actor).options(num_gpus=1 if gpu else 0)
        files = [logs.absolute() / f"embed-{number}.log" if logs is not None else None for number in range(workers)]
        self._actors = [actor.remote(spec, file) for file in files]
        self._loading = [one.load.remote() for one in self._actors]
        self.count = workers

    def embed_ranges(self, pool: Pool, ranges: Sequence[Range]) -> Iterator[tuple[Range, PoolPart]]:
        from ray.util import ActorPool  # noqa: PLC0415

        def ask(actor: Any, span: Range) -> Any:
            return actor.embed_part.remote(pool, span)

        self._ray.get(self._loading)
        yield from ActorPool(self._actors).map_unordered(ask, list(ranges))

    def embed_queries(self, units: Sequence[QueryUnit]) -> Iterator[QueryPart]:
        from ray.util import ActorPool  # noqa: PLC0415

        def ask(actor: Any, unit: QueryUnit) -> Any:
            return actor.embed_unit.remote(unit)

        self._ray.get(self._loading)
        yield from ActorPool(self._actors).map_unordered(ask, list(units))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        if self._started:
            self._ray.shutdown()


def open_workers(spec: EmbedderSpec, *, logs: Path | None = None) -> AbstractContextManager[Workers]:
    """As many as `evaluation.workers`: one is this process; more are Ray actors, with a GPU each if the device is one."""
    from trainer.data.process_group import ProcessGroup  # noqa: PLC0415

    count = spec.config.evaluation.workers
    if count == 1:
        return LocalPoolEmbedder(spec.embedder(), spec.config)
    on_gpu = ProcessGroup.join(spec.config.device).device.type == "cuda"
    return RayPoolEmbedder(spec, count, gpu=on_gpu, logs=logs)


class _Actor:
    """`load` is called first. It is not `__init__`, of whose errors Ray keeps only a text."""

    def __init__(self, spec: EmbedderSpec, log: Path | None) -> None:
        self._spec, self._log = spec, log

    def load(self) -> None:
        spec = self._spec
        if self._log is not None:
            open_run_log(self._log)
        with log_failure(logger, f"loading {spec.model or spec.config.model.base}"):
            self._worker = spec.embedder()
            self._queries = _query_embedder(self._worker, spec.config)
        logger.info("loaded %s on %s", spec.model or spec.config.model.base, self._worker.embedder.device)

    def embed_part(self, pool: Pool, span: Range) -> tuple[Range, PoolPart]:
        with log_failure(logger, f"candidates {span.start:,} to {span.stop:,} of {pool.path}"):
            return span, self._worker.embed_part(fetch_range(pool, span))

    def embed_unit(self, unit: QueryUnit) -> QueryPart:
        with log_failure(logger, f"{len(unit.places):,} queries of {unit.places[0][0].name}"):
            return self._queries.embed_unit(unit)


def _query_embedder(worker: PoolEmbedder, config: TrainConfig) -> QueryEmbedder:
    """Embeds queries with what embeds the pools."""
    engine = worker.engine or AdaptiveEmbedder(worker.embedder, config.adaptive)
    return QueryEmbedder(engine, config, worker.images)


def fetch_range(pool: Pool, span: Range) -> list[Candidate]:
    table = pool.fetch_table(np.arange(span.start, span.stop, dtype=np.int64))
    return [Candidate.model_validate(fields) for fields in table.to_pylist()]
