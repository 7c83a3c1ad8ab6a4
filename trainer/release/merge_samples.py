"""The queries and candidates on which merged weights must agree with the embedder."""

from __future__ import annotations

from typing import Final

from schemas.training import TrainConfig
from trainer.data.batches import BatchSource
from trainer.data.dataset import Candidates, Records
from trainer.data.encoding import EncodedSequence
from trainer.model.embedder import Embedder

_QUERIES: Final = 16
_CANDIDATES: Final = 8


def merge_samples(settings: TrainConfig, embedder: Embedder) -> tuple[list[EncodedSequence], list[EncodedSequence]]:
    """(queries, candidates) of `data.dataset`: queries from each dataset-task in turn, and positives of some of them."""
    records = Records.load(settings.data.dataset)
    candidates = Candidates(settings.data.mbeir, records.split, settings.data.candidate_cache)
    source = BatchSource(settings, "direct", records, traces={}, encoder=embedder.encoder(), candidates=candidates)
    groups = list(records.groups(repeat=False).values())
    chosen = [group[i] for i in range(max(map(len, groups))) for group in groups if i < len(group)][:_QUERIES]
    items = [records.item(index) for index in chosen]
    positives = candidates.fetch([item.positives[0] for item in items[:_CANDIDATES]])
    return [source.encode_prompt(item) for item in items], [source.encode_candidate(one) for one in positives]
