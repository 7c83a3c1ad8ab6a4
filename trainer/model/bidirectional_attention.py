"""Bidirectional attention in the language model, for embedders that write no trace."""

from __future__ import annotations

from typing import Any

from schemas.errors import ConfigError
from trainer.model.metadata import EmbedderMetadata


def attend_both_ways(model: Any) -> None:
    """Lets every token attend to all others, in place. A pass must be given the mask of its padding.

    transformers makes the masks by the config's `is_causal`; where a kernel needs no mask, it reads the layer's.
    """
    language = model.model.language_model
    language.config.is_causal = False
    for layer in language.layers:
        layer.self_attn.is_causal = False


def refuse_unservable(metadata: EmbedderMetadata) -> None:
    """Raises ConfigError for an embedder that only transformers can run."""
    if not metadata.writes:
        raise ConfigError(
            f"an embedder of {metadata.base} has mean pooling or bidirectional attention: vLLM and sentence-transformers would "
            "attend causally and read the last state",
            "embed with the run itself, in transformers (adaptive.engine: transformers)",
        )
