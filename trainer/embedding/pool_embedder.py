"""Embeds candidates: decoded and tokenised in a thread, embedded by the student in transformers or by vLLM."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.mbeir.image_store import ImageProblem, ImageStore
from schemas.mbeir import Candidate
from trainer.data.encoding import EncodedSequence, shows_image, text_of
from trainer.data.exclusions import Exclusion
from trainer.data.unreadable import refuse
from trainer.embedding.embed import PoolPart
from trainer.embedding.vllm_engine import VllmEngine
from trainer.model.embedder import Embedder

AHEAD: Final = 4
"""Groups of candidates that are prepared ahead of the model. It bounds what a worker holds."""


class PoolEmbedder:
    """Embeds candidates with one model, in the process that loaded it."""

    def __init__(
        self,
        embedder: Embedder,
        images: ImageStore,
        *,
        batch_size: int,
        max_chars: int,
        skip: bool = False,
        engine: VllmEngine | None = None,
    ) -> None:
        """batch_size: candidates of a forward pass. skip: leave out candidates whose images cannot be read, instead of
        raising InputError.

        engine: a `VllmEngine` to embed with, instead of `embedder`, which may then be without weights.
        """
        self.embedder, self.encoder = embedder.eval(), embedder.encoder()
        self.images, self.engine = images, engine
        self.batch_size, self.max_chars, self.skip = batch_size, max_chars, skip

    def close(self) -> None:
        """Ends what belongs to it. May be called again."""
        if self.engine is not None:
            self.engine.close()

    def embed_part(self, candidates: list[Candidate]) -> PoolPart:
        """Raises InputError for an image that cannot be read, unless such candidates are left out."""
        vectors_CD: NDArray[np.float16] | None = None
        left_out: dict[int, Exclusion] = {}
        groups = self._prepare(candidates, left_out)
        for places, vectors_BD in self._embed(groups) if self.engine is None else _embed_with(self.engine, groups):
            if vectors_CD is None:
                vectors_CD = np.zeros((len(candidates), vectors_BD.shape[1]), np.float16)
            vectors_CD[places] = vectors_BD.numpy().astype(np.float16)
        if vectors_CD is None:
            return PoolPart(np.zeros((0, 0), np.float16), left_out)
        return PoolPart(np.delete(vectors_CD, sorted(left_out), 0), left_out)

    @torch.inference_mode()
    def _embed(self, groups: Iterator[_Group]) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """(places, vectors) of each forward pass."""
        for group in groups:
            for chunk in group.inputs:
                vectors_BD, _ = self.embedder(chunk.to(self.embedder.device), labelled=False)
                yield np.array(group.places)[chunk.places.numpy()], vectors_BD.cpu()

    def _prepare(self, candidates: list[Candidate], left_out: dict[int, Exclusion]) -> Iterator[_Group]:
        """A thread decodes and tokenises the next groups while the model works. Fills `left_out`.

        One thread only: a tokenizer must not be used by several at once. Candidates are grouped by what is known before an
        image is opened, in the order of `SequenceEncoder.chunks`.
        """
        lengths = [len(text_of(candidate, self.max_chars)) for candidate in candidates]
        order = sorted(range(len(candidates)), key=lambda i: (shows_image(candidates[i]), lengths[i], i))
        groups = iter([order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)])
        waiting: deque[Future[_Group]] = deque()
        thread = ThreadPoolExecutor(1, thread_name_prefix="candidates")
        try:
            while True:
                while len(waiting) < AHEAD and (group := next(groups, None)) is not None:
                    waiting.append(thread.submit(self._prepare_group, candidates, group))
                if not waiting:
                    return
                done = waiting.popleft().result()
                left_out |= done.left_out
                yield done
        finally:
            thread.shutdown(cancel_futures=True)

    def _prepare_group(self, candidates: list[Candidate], places: list[int]) -> _Group:
        sequences: dict[int, EncodedSequence] = {}
        left_out: dict[int, Exclusion] = {}
        for place in places:
            try:
                sequences[place] = self.encoder.encode_pool_candidate(
                    candidates[place], self.images, max_chars=self.max_chars, prepare=True
                )
            except ImageProblem as problem:
                if not self.skip:
                    raise refuse("candidate", candidates[place].did, problem) from problem
                left_out[place] = Exclusion.of(candidates[place].did, problem)
        readable = list(sequences.values())
        if self.engine is not None:
            return _Group(list(sequences), self.engine.make_inputs(readable), left_out)
        chunks = self.encoder.make_chunks(readable, self.batch_size, 1 << 20) if sequences else []
        return _Group(list(sequences), chunks, left_out)


class _Group(NamedTuple):
    """Candidates that were prepared together, as chunks or as the engine's requests.

    places: the indices of the sequences among all candidates.
    """

    places: list[int]
    inputs: list[Any]
    left_out: dict[int, Exclusion]


def _embed_with(engine: VllmEngine, groups: Iterator[_Group]) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """(place, vector) of each candidate, as they are done."""
    places: list[int] = []

    def read() -> Iterator[Any]:
        for group in groups:
            places.extend(group.places)
            yield from group.inputs

    for index, one in engine.stream_inputs(read()):
        yield np.array([places[index]]), one.vector[None]
