"""Queries on which an approximate index is compared with exact search."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.dataset.training_store import training_store
from pipeline.mbeir.layout import Layout
from schemas.mbeir import DATASET_TASKS, Split
from schemas.training import TrainConfig
from trainer.embedding.embed import QueryFile
from trainer.embedding.transformers_engine import AdaptiveEmbedder
from trainer.model.embedder import Embedder

_QUERIES: Final = 256


def recall_queries(embedder: Embedder, settings: TrainConfig, split: Split) -> NDArray[np.float32]:
    """(about 256, dim): vectors of the split's queries, equally many of each dataset-task, with learned routes."""
    layout, images = Layout.open(settings.data.mbeir), training_store(settings)
    adaptive = AdaptiveEmbedder(embedder, settings.adaptive)
    tasks = [task for task in DATASET_TASKS if layout.queries(split, task).is_file()]
    rows = []
    for task in tasks:
        file = QueryFile(layout, task, split)
        file.queries = file.queries[: -(-_QUERIES // len(tasks))]
        rows += file.encode(adaptive.encoder, images)
    embedded = [query.fall_back(settings.adaptive.fallback) for query in adaptive.embed(rows)]
    vectors_QD: NDArray[np.float32] = torch.stack([query.vector for query in embedded]).numpy()
    return vectors_QD
