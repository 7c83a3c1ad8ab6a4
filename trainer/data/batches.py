"""Batches: a step's queries, a positive for each, and hard negatives; made in worker processes."""

from __future__ import annotations

import contextlib
import math
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
from trainer.data.encoding import EncodedSequence, SequenceEncoder
from trainer.data.micro_batch import MicroBatch
from trainer.data.mined import Judged

CPU_CHUNK: Final = 16
"""What `batch.micro_batch_size: auto` is on CPU."""


@dataclass(slots=True)
class Batch:
    """One process's share of a step.

    queries, candidates: micro-batches. `MicroBatch.places` gives the index of each sequence's embedding: queries in the order
    of `ids`,
        candidates in that of `dids`, which are the queries' positives, then hard negatives. There are none in a first stage.
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
    """Whether all sequences together fit `batch.micro_batch_size`."""
    judged: list[Judged] = field(default_factory=list)


class BatchSource(Dataset["Batch | CotError"]):
    """Batches by step. `own`: record id -> a trace that the student generated."""

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
        self.chunk: int = CPU_CHUNK if chunk == "auto" else chunk  # `auto` is settled later
        self.images = training_store(config)
        batch = config.batch
        groups = records.groups(repeat=config.data.upsample)
        self.sampler = BatchSampler(groups, batch.global_batch_size, config.seed, batch.sampling, batch.balance)
        self._epoch = lru_cache(maxsize=2)(self.sampler.epoch)

    def __getitem__(self, step: int) -> Batch | CotError:
        """Returns a CotError instead of raising it: torch would turn one raised in a worker process into a traceback."""
        try:
            return self.make_batch(step)
        except CotError as error:
            return error

    def draw(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """(epoch, indices of the step's records, over all processes)."""
        epoch, place = divmod(step, self.sampler.per_epoch)
        return epoch, self._epoch(epoch)[place]

    def make_batch(self, step: int) -> Batch:
        """This process's share of the step."""
        epoch, of_all_processes = self.draw(step)
        items = [self.records.item(int(index)) for index in of_all_processes[self.rank :: self.world_size]]
        if self.variant != "direct" and step < self.config.traces.first_stage_steps:
            queries = [self._encode(item, self._trace(item), labelled=self._labelled(item), pooled=False) for item in items]
            return self._batch(step, items, queries, [])
        queries = [sequence for item in items for sequence in self.encode_query(item, epoch)]
        dids = [item.positives[int(self._rng(epoch, item.id, "positive").integers(len(item.positives)))] for item in items]
        judged = []
        for query, item in enumerate(items):
            count = min(self.config.data.negatives_per_query, len(item.hard_negatives))
            drawn = self._rng(epoch, item.id, "negative").permutation(len(item.hard_negatives))[:count].tolist()
            judged.append(Judged.of(query, item, dict(enumerate(drawn, len(dids)))))
            dids += [item.hard_negatives[i] for i in drawn]
        return replace(self._batch(step, items, queries, dids), judged=[one for one in judged if one is not None])

    def _batch(self, step: int, items: list[Item], queries: list[EncodedSequence], dids: list[str]) -> Batch:
        candidates = [self.encode_candidate(candidate) for candidate in self.candidates.fetch(dids)]
        size, patches = self.config.batch.forward_batch_size or self.chunk, self.config.batch.micro_batch_patches
        return Batch(
            step=step,
            ids=[item.id for item in items],
            queries=self.encoder.make_chunks(queries, size, patches),
            candidates=self.encoder.make_chunks(candidates, size, patches),
            dids=dids,
            positives=[frozenset(item.positives) for item in items],
            reasoning=sum(bool(self._trace(item)) for item in items),
            at_once=len(queries) + len(candidates) <= self.chunk,
        )

    def encode_query(self, item: Item, epoch: int) -> list[EncodedSequence]:
        """One sequence; two if the embedding follows the student's own trace, and the cross-entropy the teacher's.

        A query whose trace is dropped needs no sequence of its own: attention is causal, so the state at the end of its prompt
        is that of a bypass, while the trace after it keeps its labels. Only `token` pooling, which reads the token after the
        prompt, takes a second one.
        """
        trace = self._trace(item)
        if trace and self._drops_trace(epoch, item.id):
            if self.encoder.pool == "pre":
                return [self._encode(item, trace, labelled=True, at_prompt=True)]
            return [self._encode(item, ""), self._encode(item, trace, labelled=True, pooled=False)]
        own = self._own(item, epoch)
        if own is None or not trace or own == trace:
            return [self._encode(item, trace, labelled=self._labelled(item))]
        return [self._encode(item, own), self._encode(item, trace, labelled=True, pooled=False)]

    def sample_labelled(self, records: int = 128) -> list[MicroBatch]:
        """Labelled sequences of random records, the same in every process: the token's row is initialised from them."""
        drawn = rng_for("opening", self.config.seed).permutation(len(self.records.table))[:records]
        sequences = [sequence for index in drawn for sequence in self.encode_query(self.records.item(int(index)), 0)]
        labelled = [sequence for sequence in sequences if sequence.labelled]
        return self.encoder.make_chunks(
            labelled, self.config.batch.forward_batch_size or self.chunk, self.config.batch.micro_batch_patches
        )

    def sample(self, queries: int) -> list[EncodedSequence]:
        """Rows of random queries with their labels, and of a positive of each; the same in every process."""
        drawn = rng_for("sample", self.config.seed).permutation(len(self.records.table))[:queries]
        items = [self.records.item(int(index)) for index in drawn]
        positives = self.candidates.fetch([item.positives[0] for item in items])
        return [sequence for item in items for sequence in self.encode_query(item, 0)] + [
            *map(self.encode_candidate, positives)
        ]

    def encode_prompt(self, item: Item) -> EncodedSequence:
        """The query alone, for the student to write its trace."""
        return self._encode(item, "")

    def _encode(self, item: Item, written: str, **flags: bool) -> EncodedSequence:
        if item.parts:
            return self.encoder.encode_parts(item.id, item.instruction, item.parts, self.images, written=written, **flags)
        picture = self.images.open(item.image) if item.image else None
        return self.encoder.encode_query(item.id, item.instruction, item.text, picture, written=written, **flags)

    def list_reasoning(self, begin: int, end: int) -> list[int]:
        """Indices of the records that steps `begin` to `end` draw and embed after a trace, over all processes."""
        ids = self.records.table["id"].to_pylist()
        drawn: set[int] = set()
        for step in range(begin, end):
            epoch, indices = self.draw(step)
            drawn.update(int(i) for i in indices if ids[i] in self.traces and not self._drops_trace(epoch, ids[i]))
        return sorted(drawn)

    def encode_candidate(self, candidate: Candidate) -> EncodedSequence:
        return self.encoder.encode_pool_candidate(candidate, self.images, max_chars=self.config.data.max_candidate_chars)

    def _trace(self, item: Item) -> str:
        return "" if self.variant == "direct" else self.traces.get(item.id, "")

    def _labelled(self, item: Item) -> bool:
        # always-reason: a query whose trace was rejected has nothing to imitate, and must not learn to bypass
        return self.variant != "always-reason" or bool(self._trace(item))

    def _own(self, item: Item, epoch: int) -> str | None:
        if self.config.traces.contrastive == "mixed" and self._rng(epoch, item.id, "own").random() < 0.5:
            return None
        return self.own.get(item.id)

    def _drops_trace(self, epoch: int, identifier: str) -> bool:
        share = self.config.traces.dropout if self.variant == "trace" else 0.0
        return bool(share) and bool(self._rng(epoch, identifier, "dropout").random() < share)

    def _rng(self, epoch: int, identifier: str, what: str) -> np.random.Generator:
        return rng_for(what, self.config.seed, epoch, identifier)


@dataclass(slots=True)
class Packed:
    """A batch on its way from worker to trainer, with its tensors concatenated into one per dtype.

    Each tensor takes an open file on that way: with eight per chunk, a training with many chunks ran out of them.
    """

    batch: Batch
    """Its chunks hold `Place`s instead of tensors."""
    flat: dict[torch.dtype, Tensor]

    def pin_memory(self) -> Self:
        """Copies into page-locked memory, for asynchronous copies to a GPU. Torch's loader calls it in a thread."""
        return replace(self, flat={dtype: tensor.pin_memory() for dtype, tensor in self.flat.items()})


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's place in the concatenated one of its dtype."""

    dtype: torch.dtype
    begin: int
    shape: tuple[int, ...]


def pack(made: Batch | CotError) -> Packed | CotError:
    if isinstance(made, CotError):
        return made
    parts: dict[torch.dtype, list[Tensor]] = {}
    ends: dict[torch.dtype, int] = {}

    def place(tensor: Tensor) -> Any:
        begin = ends.get(tensor.dtype, 0)
        ends[tensor.dtype] = begin + tensor.numel()
        parts.setdefault(tensor.dtype, []).append(tensor.reshape(-1))
        return Place(tensor.dtype, begin, tuple(tensor.shape))

    batch = _map_tensors(made, place)
    return Packed(batch, {dtype: torch.cat(tensors) for dtype, tensors in parts.items()})


def unpack(made: Packed | CotError) -> Batch:
    """The batch from a loader. Raises its error, if it is one."""
    if isinstance(made, CotError):
        raise made

    def find(place: Any) -> Tensor:
        return made.flat[place.dtype][place.begin : place.begin + math.prod(place.shape)].view(place.shape)

    return _map_tensors(made.batch, find)


def _map_tensors(batch: Batch, change: Callable[[Any], Any]) -> Batch:
    queries, candidates = ([chunk.map_tensors(change) for chunk in chunks] for chunks in (batch.queries, batch.candidates))
    return replace(batch, queries=queries, candidates=candidates)


def make_loader(source: BatchSource, begin: int, end: int, workers: int, *, pin: bool = False) -> DataLoader[Packed | CotError]:
    """Steps `begin` to `end` in order, for any number of workers. `pin`: for asynchronous copies to a GPU."""
    return DataLoader(
        source,  # type: ignore[arg-type]  # collate_fn packs its items
        batch_size=None,
        sampler=range(begin, end),
        num_workers=workers,
        collate_fn=pack,  # type: ignore[arg-type]  # without batch_size it gets one item
        prefetch_factor=source.config.data.prefetch if workers else None,
        pin_memory=pin,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_single_thread,
        generator=torch.Generator(),  # its own, so that a new loader does not change the random state of training
    )


def _single_thread(worker: int) -> None:
    torch.set_num_threads(1)


def allow_open_files() -> int:
    """Raises this process's limit on open files to the system's, and returns it.

    Loaders keep one file open per tensor in transit, and the usual default of 1,024 is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems refuse their own hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft
