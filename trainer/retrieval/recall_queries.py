"""Queries on which an approximate index is compared with exact search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.dataset.training_store import training_store
from pipeline.mbeir.layout import Layout
from schemas.mbeir import DATASET_TASKS, Split
from schemas.training import TrainConfig
from trainer.data.encoding import EncodedSequence
from trainer.data.exclusions import Exclusion, refuse_most
from trainer.data.unreadable import UnreadableImage
from trainer.embedding.embed import QueryFile
from trainer.embedding.transformers_engine import AdaptiveEmbedder
from trainer.model.embedder import Embedder

_QUERIES: Final = 256


def recall_queries(
    embedder: Embedder, settings: TrainConfig, split: Split, *, notice: Callable[[str], None] = lambda line: None
) -> NDArray[np.float32]:
    """(about 256, dim): vectors of the split's queries, equally many of each dataset-task, with learned routes.

    Raises InputError for a query that cannot be read; with `data.skip_unreadable` such queries are left out and said, unless
    they are more than `data.most_unreadable`.
    """
    layout, images = Layout.open(settings.data.mbeir), training_store(settings)
    adaptive = AdaptiveEmbedder(embedder, settings.adaptive)
    tasks = [task for task in DATASET_TASKS if layout.queries(split, task).is_file()]
    rows: list[EncodedSequence] = []
    left_out: list[Exclusion] = []
    for task in tasks:
        file = QueryFile(layout, task, split)
        for query in file.queries[: -(-_QUERIES // len(tasks))]:
            try:
                rows.append(file.student_query(query).encode(adaptive.encoder, images))
            except UnreadableImage as error:
                if not settings.data.skip_unreadable:
                    raise
                left_out.append(error.exclusion)
    if left_out:
        total = len(rows) + len(left_out)
        refuse_most(f"the queries of {split}", left_out, total, settings.data.most_unreadable)
        notice(f"recall is measured without {len(left_out):,} of {total:,} queries, whose images cannot be read")
    embedded = [query.fall_back(settings.adaptive.fallback) for query in adaptive.embed(rows)]
    vectors_QD: NDArray[np.float32] = torch.stack([query.vector for query in embedded]).numpy()
    return vectors_QD
