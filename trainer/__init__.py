"""TRACE: training, adaptive embedding, retrieval, evaluation, export.

The public interface, imported on first use (``import trainer`` does not load torch):

    TraceEmbedder    texts and images to vectors
    Index            a searchable corpus
    RemoteEmbedder   the same from a service
    load_settings    the settings of a run, a config file or a checkpoint
    evaluate_run     M-BEIR's table for a run and its controls

Names of tensors and arrays end in their dimensions, one letter each (`logits_BV`):

    B sequences in a forward pass L length in tokens  D width of states and embeddings    V vocabulary
    Q queries                   C candidates          K hits kept for a query             T labelled tokens of all sequences
    H attention heads           W windows             N patches of images, or tokens      M K hits and a block's candidates
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from schemas.lazy import import_when_asked

if TYPE_CHECKING:
    from trainer.embedding.query_embedding import QueryEmbedding
    from trainer.embedding.trace_embedder import TraceEmbedder
    from trainer.evaluation.evaluate_run import evaluate_run
    from trainer.evaluation.results import Result
    from trainer.model.location import load_settings
    from trainer.retrieval.index import Hit, Index, SearchResult
    from trainer.service.remote import RemoteEmbedder

__all__ = [
    "Hit",
    "Index",
    "QueryEmbedding",
    "RemoteEmbedder",
    "Result",
    "SearchResult",
    "TraceEmbedder",
    "evaluate_run",
    "load_settings",
]

_PLACES: Final = {
    "Hit": "trainer.retrieval.index",
    "Index": "trainer.retrieval.index",
    "QueryEmbedding": "trainer.embedding.transformers_engine",
    "RemoteEmbedder": "trainer.service.remote",
    "Result": "trainer.evaluation.results",
    "SearchResult": "trainer.retrieval.index",
    "TraceEmbedder": "trainer.embedding.trace_embedder",
    "evaluate_run": "trainer.evaluation.evaluate_run",
    "load_settings": "trainer.model.location",
}

logging.getLogger(__name__).addHandler(
    logging.NullHandler()
)  # silent until a command opens a log file or a caller adds a handler


__getattr__ = import_when_asked(__name__, _PLACES)
