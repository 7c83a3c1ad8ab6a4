"""Adaptive embedding as a module of sentence-transformers: queries reason where the embedder decides so.

    model = SentenceTransformer(modules=[AdaptiveModule.of("ORG/NAME")])
    queries = model.encode_query(["a red cube"], prompt="Find a picture of it.")
    candidates = model.encode_document([picture, {"text": "A red cube.", "image": picture}])

The prompt of `encode_query` is the instruction. Inputs are texts, PIL images, or both: ``{"text": …, "image": …}``. The vectors
are those of `TraceEmbedder`. No code of the repository is run: this class comes from the installed package, and
`trust_remote_code` stays off. For bypass embeddings, sentence-transformers loads what `merge` writes without this package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sentence_transformers.base.modules.input_module import InputModule

from schemas.errors import ConfigError, InputError
from schemas.training import RouteChoice
from trainer.embedding.query_embedding import QueryEmbedding
from trainer.embedding.trace_embedder import DEFAULT_INSTRUCTION, TextOrImage, TraceEmbedder

_QUERY = "query"
_KEYS = {"text", "image"}


class AdaptiveModule(InputModule):  # type: ignore[misc]
    """The only module of a `SentenceTransformer`. `embedded`: the queries of its last batch, with routes and traces."""

    def __init__(self, embedder: TraceEmbedder, *, route: RouteChoice = "learned") -> None:
        super().__init__()
        self.model = embedder.embedder  # registered, so that it moves to the device that sentence-transformers chooses
        self._trace_embedder, self._route = embedder, route
        self.embedded: list[QueryEmbedding] = []

    @classmethod
    def of(
        cls, place: str | Path, variant: str = "trace", *, route: RouteChoice = "learned", overrides: Sequence[str] = ()
    ) -> Self:
        """A run, a checkpoint, merged weights, or ORG/NAME on the Hub, as `TraceEmbedder.load` takes them."""
        return cls(TraceEmbedder.load(place, variant, overrides=overrides), route=route)

    @property
    def modalities(self) -> list[Any]:
        """With ``message``, sentence-transformers lets a batch mix the others."""
        return ["text", "image", ("image", "text"), "message"]

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, *, task: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Everything is prepared in `forward`, which knows the prompts. Inputs of any other task are candidates."""
        return {"inputs": list(map(_content, inputs)), "instruction": prompt or DEFAULT_INSTRUCTION, "asks": task == _QUERY}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds ``sentence_embedding``: (inputs, dim), float32, unit length."""
        inputs, embedder = features["inputs"], self._trace_embedder
        if features["asks"]:
            self.embedded = embedder.embed_queries(inputs, instruction=features["instruction"], route=self._route)
            vectors = np.stack([one.vector.numpy() for one in self.embedded])
        else:
            vectors = embedder.embed_candidates(inputs)
        features["sentence_embedding"] = torch.from_numpy(vectors).to(self.model.device)
        return features

    def get_embedding_dimension(self) -> int:
        return self._trace_embedder.dim

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Raises ConfigError: a run's own files are the model."""
        raise ConfigError(
            f"an adaptive embedder is not saved to {output_path}", "copy RUN/VARIANT/model, or use `mbeir-cot push-model`"
        )


def _content(given: Any) -> TextOrImage:
    if isinstance(given, list) and given and isinstance(given[0], Mapping):
        given = given[0]
    if not isinstance(given, Mapping):
        content: TextOrImage = given
        return content
    if "role" in given:
        raise InputError("an input is a chat message", "give text, image, or both: the embedder has prompts of its own")
    if unknown := sorted(set(given) - _KEYS):
        raise InputError(f"an input has {', '.join(map(str, unknown))}", "give text, image, or both")
    return (given.get("text"), given.get("image"))
