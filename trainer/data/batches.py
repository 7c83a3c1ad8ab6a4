"""Batches: for each query of a step its rows, one of its positives, and hard negatives; made in worker processes."""

from __future__ import annotations

import contextlib
import math
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.dataset.training_store import training_store
from schemas.errors import CotError
from schemas.mbeir import Candidate
from schemas.training import TrainConfig, Variant
from trainer.data.batch_sampler import BatchSampler, rng_for
from trainer.data.dataset import Candidates, Item, Records
from trainer.data.encoding import EncodedSequence, MicroBatch, SequenceEncoder

CPU_CHUNK: Final = 16
"""What `batch.micro_batch_size: auto` is on CPU."""


@dataclass(slots=True)
class Batch:
    """One process's share of a step.

    queries, candidates: chunks; each row says which embedding it gives (`Chunk.places`). Queries' embeddings are in the order
        of `ids`, candidates' in that of `dids`: the positives of the queries first, hard negatives after them.
    positives: all listed positives of each query.
    """

    step: int
    ids: list[str]
    queries: list[MicroBatch]
    candidates: list[MicroBatch]
    dids: list[str]
    positives: list[frozenset[str]]
    reasoning: int
    """Queries with a trace."""
    at_once: bool
    """All rows together are no more than `batch.micro_batch_size`."""


class BatchSource(Dataset["Batch | CotError"]):
    """Batches by step. `own`: record id -> a trace that the student wrote itself."""

    def __init__(
        self,
        config: TrainConfig,
        variant: Variant,
        records: Records,
        *,
        traces: Mapping[str, str],
        encoder: SequenceEncoder,
        candidates: Candidates,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.config, self.variant, self.records, self.encoder = config, variant, records, encoder
        self.traces, self.candidates = traces, candidates
        self.rank, self.world_size = rank, world_size
        self.own: dict[str, str] = {}
        chunk = config.batch.micro_batch_size
        self.chunk: int = CPU_CHUNK if chunk == "auto" else chunk  # what `auto` comes to is set later
        self.images = training_store(config)
        batch = config.batch
        groups = records.groups(repeat=config.data.upsample)
        self.order = BatchSampler(groups, batch.global_batch_size, config.seed, batch.sampling, batch.balance)
        self._epoch = lru_cache(maxsize=2)(self.order.epoch)

    def __getitem__(self, step: int) -> Batch | CotError:
        """An error of ours is returned: raised in a worker process, torch would make a traceback of it."""
        try:
            return self.batch(step)
        except CotError as error:
            return error

    def drawn(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """(epoch, indices of the records of all processes)."""
        epoch, place = divmod(step, self.order.per_epoch)
        return epoch, self._epoch(epoch)[place]

    def batch(self, step: int) -> Batch:
        epoch, everyones = self.drawn(step)
        items = [self.records.item(int(index)) for index in everyones[self.rank :: self.world_size]]
        queries = [row for item in items for row in self.query_rows(item, epoch)]
        dids = [item.positives[int(self._draw(epoch, item, "positive").integers(len(item.positives)))] for item in items]
        for item in items:
            wanted = min(self.config.data.hard_negatives, len(item.hard_negatives))
            rng = self._draw(epoch, item, "negative")
            dids += [item.hard_negatives[int(i)] for i in rng.permutation(len(item.hard_negatives))[:wanted]]
        found = [self.candidate_row(candidate) for candidate in self.candidates.fetch(dids)]
        size, patches = self.config.batch.forward_batch_size or self.chunk, self.config.batch.micro_batch_patches
        return Batch(
            step,
            [item.id for item in items],
            self.encoder.chunks(queries, size, patches),
            self.encoder.chunks(found, size, patches),
            dids,
            [frozenset(item.positives) for item in items],
            sum(bool(self._trace(item)) for item in items),
            len(queries) + len(found) <= self.chunk,
        )

    def query_rows(self, item: Item, epoch: int) -> list[EncodedSequence]:
        """One row; two where the embedding follows a trace of the student's own and the loss on words another one."""
        trace = self._trace(item)
        # always-reason: a query whose trace was refused has nothing to imitate, and must not learn to write none
        labelled = self.variant != "always-reason" or bool(trace)
        own = self._own(item, epoch)
        if own is None or not trace or own == trace:
            return [self._query(item, trace, labelled=labelled)]
        return [self._query(item, own), self._query(item, trace, labelled=True, pooled=False)]

    def opening(self, rows: int = 128) -> list[MicroBatch]:
        """Queries drawn at random with what is learnt of them, the same in every process: to begin the token's row from."""
        drawn = rng_for("opening", self.config.seed).permutation(len(self.records.table))[:rows]
        found = [row for index in drawn for row in self.query_rows(self.records.item(int(index)), 0) if row.labelled]
        return self.encoder.chunks(
            found, self.config.batch.forward_batch_size or self.chunk, self.config.batch.micro_batch_patches
        )

    def sample(self, queries: int) -> list[EncodedSequence]:
        """Rows of queries drawn at random, each with what it learns, and of a positive of each; the same in every process."""
        drawn = rng_for("sample", self.config.seed).permutation(len(self.records.table))[:queries]
        items = [self.records.item(int(index)) for index in drawn]
        found = self.candidates.fetch([item.positives[0] for item in items])
        return [row for item in items for row in self.query_rows(item, 0)] + [self.candidate_row(one) for one in found]

    def prompt_row(self, item: Item) -> EncodedSequence:
        """The query alone, for the student to write its trace."""
        return self._query(item, "")

    def _query(self, item: Item, written: str, **flags: bool) -> EncodedSequence:
        picture = self.images.open(item.image) if item.image else None
        return self.encoder.query(item.id, item.instruction, item.text, picture, written=written, **flags)

    def reasoning(self, begin: int, end: int) -> list[int]:
        """Indices of the records with a trace to learn that the steps from `begin` to `end` draw, in all processes."""
        ids = self.records.table["id"]
        drawn: set[int] = set()
        for step in range(begin, end):
            drawn.update(self.drawn(step)[1].tolist())
        return [index for index in sorted(drawn) if ids[index].as_py() in self.traces]

    def candidate_row(self, candidate: Candidate) -> EncodedSequence:
        return self.encoder.candidate_of(candidate, self.images, max_chars=self.config.data.max_candidate_chars)

    def _trace(self, item: Item) -> str:
        return "" if self.variant == "direct" else self.traces.get(item.id, "")

    def _own(self, item: Item, epoch: int) -> str | None:
        if self.config.traces.contrastive == "mixed" and self._draw(epoch, item, "own").random() < 0.5:
            return None
        return self.own.get(item.id)

    def _draw(self, epoch: int, item: Item, what: str) -> np.random.Generator:
        return rng_for(what, self.config.seed, epoch, item.id)


@dataclass(slots=True)
class Packed:
    """A batch whose tensors are one per dtype for the way from worker to trainer.

    A tensor takes an open file on that way: with eight a chunk, a training with many chunks ran out of them.
    """

    batch: Batch
    """Its chunks' tensors are `Place`s."""
    flat: dict[torch.dtype, Tensor]

    def pin_memory(self) -> Self:
        """In pages from which a GPU copies while the CPU goes on; what torch's loader asks for in its own thread."""
        return replace(self, flat={dtype: tensor.pin_memory() for dtype, tensor in self.flat.items()})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in the flat one of its dtype."""

    dtype: torch.dtype
    begin: int
    shape: tuple[int, ...]


def packed(made: Batch | CotError) -> Packed | CotError:
    if isinstance(made, CotError):
        return made
    parts: dict[torch.dtype, list[Tensor]] = {}
    ends: dict[torch.dtype, int] = {}

    def place(tensor: Tensor) -> Any:
        begin = ends.get(tensor.dtype, 0)
        ends[tensor.dtype] = begin + tensor.numel()
        parts.setdefault(tensor.dtype, []).append(tensor.reshape(-1))
        return Place(tensor.dtype, begin, tuple(tensor.shape))

    batch = _with_tensors(made, place)
    return Packed(batch, {dtype: torch.cat(tensors) for dtype, tensors in parts.items()})


def unwrapped(made: Packed | CotError) -> Batch:
    """What a loader gives, with errors raised."""
    if isinstance(made, CotError):
        raise made

    def find(place: Any) -> Tensor:
        return made.flat[place.dtype][place.begin : place.begin + math.prod(place.shape)].view(place.shape)

    return _with_tensors(made.batch, find)


def _with_tensors(batch: Batch, change: Callable[[Any], Any]) -> Batch:
    def changed(chunk: MicroBatch) -> MicroBatch:
        return chunk.changed(change)

    return replace(batch, queries=[*map(changed, batch.queries)], candidates=[*map(changed, batch.candidates)])


def loader(source: BatchSource, begin: int, end: int, workers: int, *, pin: bool = False) -> DataLoader[Packed | CotError]:
    """Steps `begin` to `end` in order, whatever the number of workers. `pin`: for copies to a GPU that nobody waits for."""
    return DataLoader(
        source,  # type: ignore[arg-type]  # collate_fn packs what it gives
        batch_size=None,
        sampler=range(begin, end),
        num_workers=workers,
        collate_fn=packed,  # type: ignore[arg-type]  # without batch_size it is given one item
        prefetch_factor=source.config.data.prefetch if workers else None,
        pin_memory=pin,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_single_thread,
        generator=torch.Generator(),  # its own: making a loader leaves the random state of training alone
    )


def _single_thread(worker: int) -> None:
    torch.set_num_threads(1)


def allow_open_files() -> int:
    """Raises this process's limit of open files to what the system allows, and returns it.

    Loaders keep a file for each tensor on its way, and the 1024 that most shells begin with are few.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems refuse their own hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft
