"""What embeds queries: the student in transformers (`adaptive`) or in vLLM (`vllm_engine`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from schemas.training import RouteChoice
from trainer.data.encoding import EncodedSequence, SequenceEncoder
from trainer.embedding.transformers_engine import QueryEmbedding


class QueryEngine(Protocol):
    @property
    def encoder(self) -> SequenceEncoder:
        """Makes the rows."""

    def embed(
        self, rows: Sequence[EncodedSequence], *, route: RouteChoice | None = None, given: Sequence[bool] | None = None
    ) -> list[QueryEmbedding]:
        """In the order of `rows`. `given`: whether each reasons, for ``route="given"``."""

    def stream(
        self, rows: Sequence[EncodedSequence], *, route: RouteChoice | None = None, given: Sequence[bool] | None = None
    ) -> Iterator[tuple[int, QueryEmbedding]]:
        """(index in `rows`, embedding), as they are done."""

    def embed_written(self, rows: Sequence[EncodedSequence], size: int) -> Tensor:
        """(n, dim), unit length, float32, on the CPU: the embeddings of rows after the text that they carry.

        size: rows of a forward pass, where there are such.
        """
