"""One step of the joint loss over a batch of any size, in memory that depends only on the chunks.

1. Every chunk is embedded without a graph; the state of the random generators before it is kept.
2. The contrastive loss over all embeddings (gathered over processes) gives the gradient of each embedding.
3. Every chunk is run again, with a graph and the same random numbers, and its part of
       Σ embedding · gradient  +  λ_gen · Σ CE / global queries
   is differentiated. The sum over chunks is the gradient of the whole loss.

A batch whose sequences fit `batch.micro_batch_size` keeps the graph of the first pass and skips the repetition.

A frozen vision tower's states are kept from the first pass for the third, up to a limit. Nothing in the passes waits for the
GPU: losses are read once, at the end.

Gradient caching: Gao et al. 2021 (arXiv 2101.06983). The cross-entropy is part of the third pass because it is a sum over
sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from schemas.errors import CotError
from schemas.training import LossSettings
from trainer.data.batches import Batch
from trainer.data.micro_batch import MicroBatch
from trainer.data.process_group import ProcessGroup
from trainer.model.embedder import Embedder
from trainer.model.losses import Pairing, distillation_loss, matryoshka_info_nce
from trainer.model.vision_cache import Seen, TowerMemory


class StepLosses(NamedTuple):
    """Global means, the same in every process. `retrieval`, `hit` and `similarity` are 0 in a first stage."""

    total: float
    retrieval: float
    generation: float
    hit: float
    """Share of the batch's queries whose positive scores above all its negatives."""
    similarity: float
    """Mean cosine of two candidates of the batch. Near 1 the embeddings are all alike: they have collapsed."""
    distillation: float = 0.0
    """Mean over the judged queries (`loss.distillation_weight`)."""


class DivergedError(CotError):
    """A loss or gradient that is not finite."""


def train_step(
    embedder: Embedder, batch: Batch, settings: LossSettings, processes: ProcessGroup, *, vision_cache_gib: float = 4.0
) -> StepLosses:
    """Adds the gradients of a batch to the embedder's parameters, summed over processes.

    vision_cache_gib: limit on the vision states kept between the passes, on the device.
    Raises DivergedError before any parameter changes.
    """
    queries, candidates = batch.queries, batch.candidates  # on the CPU; a chunk is moved to the device when it is run
    total = sum(processes.gather_objects(len(batch.ids)))
    memory = TowerMemory(embedder.model, vision_cache_gib * 2**30)
    cache = _GradientCache(embedder, settings, processes.device, memory, keep_graph=batch.at_once)
    queries_QD = cache.embed(queries, len(batch.ids))
    candidates_CD = cache.embed(candidates, len(batch.dids))
    distillation = _backward_distillation(embedder, batch, queries_QD, candidates_CD, settings=settings, processes=processes)
    retrieval = hit = similarity = 0.0
    if batch.dids:  # without candidates it is a step of the first stage, in every process
        retrieval, hit, similarity = _backward_contrastive(
            embedder, batch, queries_QD=queries_QD, candidates_CD=candidates_CD, settings=settings, processes=processes
        )
    chunks = [(chunk, queries_QD) for chunk in queries] + [(chunk, candidates_CD) for chunk in candidates]

    generation = torch.zeros((), device=processes.device)
    surrogates = []
    for chunk, vectors in chunks:
        embeddings_BD, losses_B = cache.replay(chunk)
        surrogate = settings.generation_weight * losses_B.sum() / total
        if vectors.grad is not None and bool((chunk.places >= 0).any()):
            surrogate = surrogate + (embeddings_BD * _row_gradients(vectors.grad, chunk.places)).sum()
        if surrogate.requires_grad:
            surrogate.backward()  # type: ignore[no-untyped-call]
        surrogates.append(surrogate.detach())
        generation += losses_B.detach().sum() / total
    for chunk, value in zip((chunk for chunk, _ in chunks), torch.stack(surrogates).tolist(), strict=True):
        if not math.isfinite(value):  # before the optimiser's step, so the weights are unchanged
            raise DivergedError(
                f"step {batch.step}: the loss is not finite for {', '.join(chunk.names[:8])}",
                "lower optimiser.lr, or check these records; the last checkpoint is unchanged",
            )
    processes.sum_gradients(embedder.parameters(), whole=[embedder.log_scale])
    generation = processes.sum(generation)
    total_loss = settings.retrieval_weight * retrieval + settings.generation_weight * float(generation)
    total_loss += settings.distillation_weight * distillation
    return StepLosses(total_loss, retrieval, float(generation), hit, similarity, distillation)


def _backward_distillation(
    embedder: Embedder,
    batch: Batch,
    queries_QD: Tensor,
    candidates_CD: Tensor,
    *,
    settings: LossSettings,
    processes: ProcessGroup,
) -> float:
    """The mean over the judged queries of all processes; leaves gradients in the embeddings of this process."""
    if not settings.distillation_weight:
        return 0.0
    total = sum(processes.gather_objects(len(batch.judged)))
    if not total:
        return 0.0
    loss = distillation_loss(
        queries_QD, candidates_CD, batch.judged, embedder.scale, temperature=settings.distillation_temperature
    )
    loss = loss / total
    if batch.judged:
        (settings.distillation_weight * loss).backward()  # type: ignore[no-untyped-call]
    return float(processes.sum(loss.detach()))


def _backward_contrastive(
    embedder: Embedder,
    batch: Batch,
    *,
    queries_QD: Tensor,
    candidates_CD: Tensor,
    settings: LossSettings,
    processes: ProcessGroup,
) -> tuple[float, float, float]:
    """(loss, share of hits, mean cosine of two candidates) over all processes.

    Leaves gradients in the embeddings of this process and the temperature.
    """
    of_processes = processes.gather_objects((batch.dids, batch.positives))
    query_parts = processes.gather(queries_QD.detach())
    candidate_parts = processes.gather(candidates_CD.detach())
    query_parts[processes.rank], candidate_parts[processes.rank] = queries_QD, candidates_CD
    # the positives of all processes first, then their hard negatives
    sizes = [len(positives) for _, positives in of_processes]
    ordered = [part[:n] for part, n in zip(candidate_parts, sizes, strict=True)]
    ordered += [part[n:] for part, n in zip(candidate_parts, sizes, strict=True)]
    dids = [did for (d, _), n in zip(of_processes, sizes, strict=True) for did in d[:n]]
    dids += [did for (d, _), n in zip(of_processes, sizes, strict=True) for did in d[n:]]
    pairing = Pairing.of(dids, [listed for _, positives in of_processes for listed in positives])
    all_queries_QD, all_candidates_CD = torch.cat(query_parts), torch.cat(ordered)
    loss = matryoshka_info_nce(
        all_queries_QD,
        all_candidates_CD,
        pairing,
        embedder.scale,
        dims=settings.matryoshka,
        symmetric=settings.bidirectional,
    )
    if not bool(torch.isfinite(loss)):
        named = ", ".join(_name_not_finite(batch, queries_QD, candidates_CD))
        raise DivergedError(
            f"step {batch.step}: the contrastive loss is not finite ({named})",
            "lower optimiser.lr or raise loss.temperature; the last checkpoint is as it was",
        )
    if settings.retrieval_weight:
        (settings.retrieval_weight * loss).backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        scores_QC = (all_queries_QD @ all_candidates_CD.T).masked_fill(pairing.masked.to(loss.device), -torch.inf)
        target_Q = torch.arange(len(scores_QC), device=loss.device)
        hit = float((scores_QC.argmax(1) == target_Q).float().mean())
        count = len(all_candidates_CD)
        pairs = all_candidates_CD.float().sum(0).square().sum() - all_candidates_CD.float().square().sum()
        similarity = float(pairs) / max(1, count * (count - 1))
    return float(loss.detach()), hit, similarity


def _name_not_finite(batch: Batch, queries_QD: Tensor, candidates_CD: Tensor, most: int = 8) -> list[str]:
    """Names the queries and candidates of this process whose embeddings are not finite."""
    names = [*batch.ids, *batch.dids]
    bad = torch.cat([~torch.isfinite(vectors.detach()).all(1) for vectors in (queries_QD, candidates_CD)])
    named = [name for name, is_bad in zip(names, bad.tolist(), strict=True) if is_bad]
    return [*named[:most], *(["…"] if len(named) > most else [])] or ["every embedding of this process is finite"]


def _row_gradients(gradients_QD: Tensor, places_B: Tensor) -> Tensor:
    """(sequences, dim): the gradient of each sequence's embedding, 0 for a sequence without one. places_B: on the CPU."""
    index_B = places_B.to(gradients_QD.device, non_blocking=True)
    return gradients_QD.index_select(0, index_B.clamp(min=0)) * (index_B >= 0).unsqueeze(1)


class _GradientCache:
    """Embeds chunks, then replays each of them, in the same order, with its graph.

    Without `keep_graph` a replay is a second forward pass with the random numbers of the first. With it the first pass keeps
    its graph, which takes the memory of all chunks.
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
        """(count, dim), a leaf that requires a gradient; without columns if no sequence's embedding is used."""
        embeddings_QD: Tensor | None = None
        for chunk in chunks:
            if self._keep_graph:
                self._kept.append(self._embedder(chunk.to(self._device), **self._losses))
                vectors_BD = self._kept[-1][0].detach()
            else:
                on_gpu: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
                self._random.append((torch.get_rng_state(), torch.cuda.get_rng_state() if on_gpu else None))
                if not bool((chunk.places >= 0).any()):
                    self._seen.append([])
                    continue
                with torch.no_grad(), self._memory.record() as seen:
                    vectors_BD, _ = self._embedder(chunk.to(self._device), labelled=False)
                self._seen.append(seen)
            if embeddings_QD is None:
                # one more, for sequences whose embedding is not used
                embeddings_QD = vectors_BD.new_zeros(count + 1, vectors_BD.shape[1])
            places_B = torch.where(chunk.places < 0, count, chunk.places)
            embeddings_QD.index_copy_(0, places_B.to(self._device, non_blocking=True), vectors_BD)
        if embeddings_QD is None:
            return torch.empty(count, 0, requires_grad=True)
        return embeddings_QD[:count].requires_grad_()

    def replay(self, chunk: MicroBatch) -> tuple[Tensor, Tensor]:
        """(embeddings, CE per sequence) of the next micro-batch."""
        if self._keep_graph:
            return self._kept.pop(0)
        cpu, gpu = self._random.pop(0)
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu)
        seen = next(iter(self._seen.pop(0)), None)
        replayed: tuple[Tensor, Tensor] = self._embedder(chunk, seen=seen, **self._losses)
        return replayed
