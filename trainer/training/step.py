"""One step of the joint loss over a batch of any size, in memory that depends on the chunks only.

1. Every chunk is embedded without a graph; the state of the random generators before each is kept.
2. The contrastive loss over all embeddings (gathered over processes) gives the gradient of each embedding.
3. Every chunk is run again, with a graph and the same random numbers, and its part of
       Σ embedding · gradient  +  λ_gen · Σ CE / global queries
   is differentiated. The sum over chunks is the gradient of the whole loss.

A batch whose rows fit `batch.micro_batch_size` at once keeps the graph of the first pass instead of running the third.

What a frozen vision tower gave in the first pass is kept for the third, up to a bound. Nothing in the passes waits for the GPU:
losses are looked at once, at the end.

Gradient caching: Gao et al. 2021 (arXiv 2101.06983); the cross-entropy joins in the third pass because it is a sum over rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from schemas.errors import CotError
from schemas.training import LossSettings
from trainer.data.batches import Batch
from trainer.data.encoding import MicroBatch
from trainer.distributed import ProcessGroup
from trainer.model.embedder import Embedder
from trainer.model.losses import Pairing, info_nce
from trainer.model.vision_cache import Seen, TowerMemory


class StepLosses(NamedTuple):
    """Global means, the same in every process."""

    total: float
    retrieval: float
    generation: float
    hit: float
    """Share of the batch's queries whose positive scores above all its negatives."""


class DivergedError(CotError):
    """A loss or gradient that is not finite."""


def train_step(
    embedder: Embedder, batch: Batch, settings: LossSettings, processes: ProcessGroup, *, vision_cache_gib: float = 4.0
) -> StepLosses:
    """Adds the gradients of a batch to the embedder's parameters, summed over processes.

    vision_cache_gib: what may be kept of the vision tower's output between the passes, on the device.
    """
    queries, candidates = batch.queries, batch.candidates  # on the CPU; each goes to the device when it is its turn
    total = sum(processes.gather_objects(len(batch.ids)))
    memory = TowerMemory(embedder.model, vision_cache_gib * 2**30)
    first = _FirstPass(embedder, settings, processes.device, memory, keep_graph=batch.at_once)
    query_vectors = first.embed(queries, len(batch.ids))
    candidate_vectors = first.embed(candidates, len(batch.dids))
    retrieval, hit = _contrast(
        embedder, batch, queries=query_vectors, candidates=candidate_vectors, settings=settings, processes=processes
    )
    chunks = [(chunk, query_vectors) for chunk in queries] + [(chunk, candidate_vectors) for chunk in candidates]

    generation = torch.zeros((), device=processes.device)
    surrogates = []
    for chunk, vectors in chunks:
        found, losses = first.again(chunk)
        surrogate = settings.generation_weight * losses.sum() / total
        if vectors.grad is not None and bool((chunk.places >= 0).any()):
            surrogate = surrogate + (found * _of_rows(vectors.grad, chunk.places)).sum()
        if surrogate.requires_grad:
            surrogate.backward()  # type: ignore[no-untyped-call]
        surrogates.append(surrogate.detach())
        generation += losses.detach().sum() / total
    for chunk, value in zip((chunk for chunk, _ in chunks), torch.stack(surrogates).tolist(), strict=True):
        if not math.isfinite(value):  # before the optimiser's step: the weights are what they were
            raise DivergedError(
                f"step {batch.step}: the loss is not finite for {', '.join(chunk.names[:8])}",
                "lower optimiser.lr, or look at these rows; the last checkpoint is as it was",
            )
    processes.sum_gradients(embedder.parameters(), whole=[embedder.log_scale])
    generation = processes.sum(generation)
    total_loss = settings.retrieval_weight * retrieval + settings.generation_weight * float(generation)
    return StepLosses(total_loss, retrieval, float(generation), hit)


def _contrast(
    embedder: Embedder, batch: Batch, *, queries: Tensor, candidates: Tensor, settings: LossSettings, processes: ProcessGroup
) -> tuple[float, float]:
    """(loss, share of hits); leaves the gradients in `queries`, `candidates` and the temperature."""
    everyones = processes.gather_objects((batch.dids, batch.positives))
    query_parts = processes.gather(queries.detach())
    candidate_parts = processes.gather(candidates.detach())
    query_parts[processes.rank], candidate_parts[processes.rank] = queries, candidates
    # the positives of all processes first, then their hard negatives
    sizes = [len(positives) for _, positives in everyones]
    ordered = [part[:n] for part, n in zip(candidate_parts, sizes, strict=True)]
    ordered += [part[n:] for part, n in zip(candidate_parts, sizes, strict=True)]
    dids = [did for (d, _), n in zip(everyones, sizes, strict=True) for did in d[:n]]
    dids += [did for (d, _), n in zip(everyones, sizes, strict=True) for did in d[n:]]
    pairing = Pairing.of(dids, [listed for _, positives in everyones for listed in positives])
    all_queries, all_candidates = torch.cat(query_parts), torch.cat(ordered)
    loss = info_nce(all_queries, all_candidates, pairing, embedder.scale, symmetric=settings.bidirectional)
    if not bool(torch.isfinite(loss)):
        named = ", ".join(_not_finite(batch, queries, candidates))
        raise DivergedError(
            f"step {batch.step}: the contrastive loss is not finite ({named})",
            "lower optimiser.lr or raise loss.temperature; the last checkpoint is as it was",
        )
    if settings.retrieval_weight:
        (settings.retrieval_weight * loss).backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        scores = (all_queries @ all_candidates.T).masked_fill(pairing.masked.to(loss.device), -torch.inf)
        right = torch.arange(len(scores), device=loss.device)
        hit = float((scores.argmax(1) == right).float().mean())
    return float(loss.detach()), hit


def _not_finite(batch: Batch, queries: Tensor, candidates: Tensor, most: int = 8) -> list[str]:
    """The queries and candidates of this process whose embeddings are not finite."""
    names = [*batch.ids, *batch.dids]
    bad = [~torch.isfinite(vectors.detach()).all(1) for vectors in (queries, candidates)]
    found = [name for name, is_bad in zip(names, torch.cat(bad).tolist(), strict=True) if is_bad]
    return [*found[:most], *(["…"] if len(found) > most else [])] or ["every embedding of this process is finite"]


def _of_rows(gradients: Tensor, places: Tensor) -> Tensor:
    """The gradient of each row's embedding, 0 for a row without: (embeddings, dim), (rows,) on the CPU -> (rows, dim)."""
    at = places.to(gradients.device, non_blocking=True)
    return gradients.index_select(0, at.clamp(min=0)) * (at >= 0).unsqueeze(1)


class _FirstPass:
    """Embeds chunks, and later gives each chunk again, in the same order, with its graph.

    Without `keep_graph` that is a second forward pass with the random numbers of the first; with it the first one is kept,
    which costs the memory of all chunks.
    """

    def __init__(
        self, embedder: Embedder, settings: LossSettings, device: torch.device, memory: TowerMemory, *, keep_graph: bool
    ) -> None:
        self._embedder, self._device, self._keep_graph = embedder, device, keep_graph
        self._memory = memory
        self._losses: dict[str, Any] = {"labelled": settings.generation_weight > 0, "route": settings.route_weight}
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._random: list[tuple[Tensor, Tensor | None]] = []
        self._seen: list[list[Seen]] = []

    def embed(self, chunks: Sequence[MicroBatch], count: int) -> Tensor:
        """(count, dim), a leaf that takes a gradient."""
        found: Tensor | None = None
        for chunk in chunks:
            if self._keep_graph:
                self._kept.append(self._embedder(chunk.to(self._device), **self._losses))
                vectors = self._kept[-1][0].detach()
            else:
                on_gpu: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
                self._random.append((torch.get_rng_state(), torch.cuda.get_rng_state() if on_gpu else None))
                if not bool((chunk.places >= 0).any()):
                    self._seen.append([])
                    continue
                with torch.no_grad(), self._memory.watching() as seen:
                    vectors, _ = self._embedder(chunk.to(self._device), labelled=False)
                self._seen.append(seen)
            if found is None:
                found = vectors.new_zeros(count + 1, vectors.shape[1])  # the last one: of rows whose embedding is not used
            places = torch.where(chunk.places < 0, count, chunk.places)
            found.index_copy_(0, places.to(self._device, non_blocking=True), vectors)
        assert found is not None, "a batch has at least one query"
        return found[:count].requires_grad_()

    def again(self, chunk: MicroBatch) -> tuple[Tensor, Tensor]:
        """(embeddings, CE per row) of the next chunk."""
        if self._keep_graph:
            return self._kept.pop(0)
        cpu, gpu = self._random.pop(0)
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu)
        seen = next(iter(self._seen.pop(0)), None)
        found: tuple[Tensor, Tensor] = self._embedder(chunk, seen=seen, **self._losses)
        return found
