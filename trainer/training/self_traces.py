"""Traces that the student generates for its own training queries.

In training the embedding is conditioned on the teacher's traces, in service on the student's own: the exposure gap. With
``contrastive: own`` the contrastive loss uses these traces instead; the cross-entropy keeps the teacher's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from schemas.training import AdaptiveSettings
from trainer.data.batches import BatchSource
from trainer.data.process_group import ProcessGroup
from trainer.embedding.transformers_engine import AdaptiveEmbedder
from trainer.model.embedder import Embedder

_LEAST: Final = 512
"""Queries encoded and embedded at a time."""


def generate_traces(
    embedder: Embedder, source: BatchSource, indices: Sequence[int], settings: AdaptiveSettings, processes: ProcessGroup
) -> dict[str, str]:
    """Record id -> the student's trace for these records, from all processes. Cut traces are left out."""
    mine = [source.records.item(index) for index in indices[processes.rank :: processes.size]]
    adaptive = AdaptiveEmbedder(embedder, settings, source.encoder)
    traces: dict[str, str] = {}
    size = max(_LEAST, 2 * settings.decode_rows)  # a finished row's place goes to the next, so more than fit at once
    for start in range(0, len(mine), size):
        part = mine[start : start + size]
        sequences = [source.encode_prompt(item) for item in part]
        embeddings = adaptive.embed(sequences, route="always-reason")
        traces |= {item.id: one.trace for item, one in zip(part, embeddings, strict=True) if one.ended and one.trace}
    embedder.train()
    return {identifier: trace for part in processes.gather_objects(traces) for identifier, trace in part.items()}
