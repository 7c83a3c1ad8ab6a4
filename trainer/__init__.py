"""TRACE: training, adaptive embedding, retrieval, evaluation, export.

Its public face, imported when it is first asked for (``import trainer`` loads no torch):

    TraceEmbedder    texts and pictures into vectors
    Index            a corpus to be searched
    load_settings    the settings of a run, a config file or a checkpoint
    evaluate_run     M-BEIR's table for a run and what it is compared with

Tensors end in their dimensions, one letter each (`logits_BV`):

    B rows of a forward pass    L length in tokens    D width of states and embeddings    V vocabulary
    Q queries                   C candidates          T labelled tokens, of all rows
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from trainer.embedding.adaptive import QueryEmbedding
    from trainer.embedding.trace_embedder import TraceEmbedder
    from trainer.evaluation.evaluate_run import evaluate_run
    from trainer.evaluation.results import Result
    from trainer.model.location import load_settings
    from trainer.retrieval.index import Found, Hit, Index

__all__ = ["Found", "Hit", "Index", "QueryEmbedding", "Result", "TraceEmbedder", "evaluate_run", "load_settings"]

_PLACES: Final = {
    "Found": "trainer.retrieval.index",
    "Hit": "trainer.retrieval.index",
    "Index": "trainer.retrieval.index",
    "QueryEmbedding": "trainer.embedding.adaptive",
    "Result": "trainer.evaluation.results",
    "TraceEmbedder": "trainer.embedding.trace_embedder",
    "evaluate_run": "trainer.evaluation.evaluate_run",
    "load_settings": "trainer.model.location",
}

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent until a command opens a file or a caller its own


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
