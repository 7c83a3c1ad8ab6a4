"""A trained embedder as MTEB takes one: its `encode` protocol (mteb 2.x), which asks for batches of texts and images.

Queries are embedded with an instruction, as M-BEIR's are: the one that comes with them, else the task's own prompt, else
`DEFAULT_INSTRUCTION`; they reason where the route says so. All else (documents, and both sides of tasks without queries) is
embedded as a candidate is. Vectors are those of `TraceEmbedder`, so those of `eval`. mteb itself is imported only where its
record of a model is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from schemas.errors import InputError
from schemas.training import RouteChoice
from trainer.embedding.trace_embedder import DEFAULT_INSTRUCTION, TextOrImage, TraceEmbedder

Array = NDArray[np.float32]
_QUERY: Final = "query"


class RouteCount(TypedDict):
    """Of one task's queries."""

    queries: int
    reasoned: int
    cut: int
    tokens: int


class MtebModel:
    """`mteb.evaluate(MtebModel(embedder, "org/name"), tasks)`. `routes`: how each task's queries were routed so far."""

    def __init__(
        self,
        embedder: TraceEmbedder,
        name: str,
        *,
        route: RouteChoice = "learned",
        instructions: Mapping[str, str] | None = None,
    ) -> None:
        """name: as ORG/NAME. instructions: task name -> what to ask its queries with, before MTEB's own."""
        self._embedder, self._name, self._route = embedder, name, route
        self._instructions = dict(instructions or {})
        self.routes: dict[str, RouteCount] = {}

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> Array:
        """(inputs, dim), float32, unit length, in order."""
        asks = prompt_type is not None and getattr(prompt_type, "value", prompt_type) == _QUERY
        found = [self._queries(batch, task_metadata) if asks else self._candidates(batch) for batch in inputs]
        return np.concatenate(found) if found else np.zeros((0, self._embedder.dim), np.float32)

    def similarity(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Inner products, of all with all: vectors have length 1."""
        return np.atleast_2d(np.asarray(embeddings1)) @ np.atleast_2d(np.asarray(embeddings2)).T

    def similarity_pairwise(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Inner products, of each with its own."""
        products: Array = np.einsum("nd,nd->n", np.atleast_2d(embeddings1), np.atleast_2d(embeddings2))
        return products

    @property
    def mteb_model_meta(self) -> Any:
        """mteb's record of the model; results are kept by its name and revision."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction  # noqa: PLC0415

        known = {
            "name": self._name,
            "revision": f"{(self._embedder.sha256 or 'none')[:16]}-{self._route}",
            "embed_dim": self._embedder.dim,
            "similarity_fn_name": ScoringFunction.DOT_PRODUCT,
            "use_instructions": True,
            "modalities": ["text", "image"],
        }
        return ModelMeta.create_empty(overwrites=known)

    def _queries(self, batch: Mapping[str, Any], task: Any) -> Array:
        shown = _shown(batch, "query" if "query" in batch else "text")
        own = batch.get("instruction") or [None] * len(shown)
        fallback = self._instruction(task)
        embedded = self._embedder.embed_queries(shown, instruction=[one or fallback for one in own], route=self._route)
        count = self.routes.setdefault(task.name, RouteCount(queries=0, reasoned=0, cut=0, tokens=0))
        count["queries"] += len(embedded)
        count["reasoned"] += sum(one.reasoned for one in embedded)
        count["cut"] += sum(not one.ended for one in embedded)
        count["tokens"] += sum(one.tokens for one in embedded)
        return np.stack([one.vector.numpy() for one in embedded])

    def _candidates(self, batch: Mapping[str, Any]) -> Array:
        return self._embedder.embed_candidates(_shown(batch, "text"))

    def _instruction(self, task: Any) -> str:
        prompt = getattr(task, "prompt", None)
        own = prompt.get(_QUERY) if isinstance(prompt, Mapping) else prompt
        return self._instructions.get(task.name) or own or DEFAULT_INSTRUCTION


def _shown(batch: Mapping[str, Any], key: str) -> list[TextOrImage]:
    """Each input of a batch: a text, an image, or both."""
    texts, images = batch.get(key), batch.get("image")
    if texts is None and images is None:
        raise InputError(f"mteb asks for {', '.join(batch) or 'nothing'}", "choose tasks of texts and images")
    number = len(texts if texts is not None else images or ())
    pairs = zip(texts or [None] * number, images or [None] * number, strict=True)
    return [_one(text, image) for text, image in pairs]


def _one(text: Any, image: Any) -> TextOrImage:
    if text is not None and not isinstance(text, str):
        raise InputError(f"mteb gives a {type(text).__name__} for a text", "conversations are not embedded: choose other tasks")
    if image is not None and not isinstance(image, Image.Image):
        raise InputError(f"mteb gives a {type(image).__name__} for an image", "choose a task whose images are opened")
    return (text or None, image) if image is not None else text or ""
