"""A query's embedding, and the interface of the engines that compute it: `transformers_engine` and `vllm_engine`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple, Protocol

from torch import Tensor

from schemas.training import RouteChoice
from trainer.data.encoding import EncodedSequence, SequenceEncoder


class QueryEmbedding(NamedTuple):
    """A query's embedding, and how it was computed.

    vector: (dim,), unit length, float32, on the CPU.
    p_direct: probability of the embedding token as the first token: the confidence of the route.
    tokens: written before the embedding token.
    seconds: from the start of its prefill to its embedding.
    bypass: with `pre` pooling, the embedding without its trace of a query that reasoned; its prefill computes that anyway.
    bypass_seconds: from the start of its prefill to that.
    prompt_tokens: read, those of its images included.
    confidence: mean log-probability of the trace's tokens, that of the first among those that begin a trace; None if it wrote
        none. The end of the trace does not count.
    fell_back: whether `vector` is the bypass embedding because the confidence was too low (`adaptive.fallback`).
    """

    vector: Tensor
    reasoned: bool
    ended: bool
    trace: str
    p_direct: float
    tokens: int
    seconds: float
    bypass: Tensor | None = None
    bypass_seconds: float = 0.0
    prompt_tokens: int = 0
    confidence: float | None = None
    fell_back: bool = False

    def fall_back(self, threshold: float | None) -> QueryEmbedding:
        """With its bypass embedding, if its trace's confidence is below the threshold. None: as it is."""
        if threshold is None or self.confidence is None or self.bypass is None or self.confidence >= threshold:
            return self
        return self._replace(vector=self.bypass, fell_back=True)


class QueryEngine(Protocol):
    @property
    def encoder(self) -> SequenceEncoder:
        """Makes the sequences."""

    def embed(
        self, sequences: Sequence[EncodedSequence], *, route: RouteChoice | None = None, given: Sequence[bool] | None = None
    ) -> list[QueryEmbedding]:
        """In the order of `sequences`. `given`: whether each reasons, for ``route="given"``."""

    def stream(
        self, sequences: Sequence[EncodedSequence], *, route: RouteChoice | None = None, given: Sequence[bool] | None = None
    ) -> Iterator[tuple[int, QueryEmbedding]]:
        """(index in `sequences`, embedding), as they are done."""

    def embed_written(self, sequences: Sequence[EncodedSequence], size: int) -> Tensor:
        """(n, dim), unit length, float32, on the CPU: the embeddings of sequences after the text that they carry.

        size: sequences in a forward pass, where there are such.
        """


def choose_to_reason(count: int, route: RouteChoice, given: Sequence[bool] | None) -> list[bool | None]:
    """Whether each of so many queries reasons; None for the student's own choice."""
    if route == "learned":
        return [None] * count
    if route != "given":
        return [route == "always-reason"] * count
    if given is None or len(given) != count:
        raise ValueError("route 'given' needs one flag per sequence")
    return list(given)


def in_order(indexed: Iterable[tuple[int, QueryEmbedding]]) -> list[QueryEmbedding]:
    """The embeddings by their indices."""
    return [one for _, one in sorted(indexed, key=itemgetter(0))]
