"""Small copies of an index's vectors, which fit into memory where the full ones do not, and the rescoring of what they find.

    kind      a vector takes     compared by
    float16   2 x dims bytes     inner product
    int8      dims bytes         inner product of the values that 8 bits give back (faiss: SQ8)
    binary    dims / 8 bytes     bits that differ, of the signs around the corpus's mean (faiss: IndexBinaryFlat)

`dims` keeps the first dimensions and scales them to unit length: for an embedder that was trained for it (``loss.matryoshka``).
A search takes `OVERSAMPLING` times as many candidates as are wanted, reads their full vectors from disk and scores them. So
scores and order are those of the exact search (up to rounding), and only what the small vectors did not find is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Literal

import faiss
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from schemas.errors import ConfigError, InputError
from trainer.embedding.embed import write_array
from trainer.embedding.files import open_array
from trainer.embedding.vectors import Vectors, normalise
from trainer.retrieval.faiss_files import read_faiss, write_faiss
from trainer.retrieval.topk import MISSING, TopK, sort_hits

SmallKind = Literal["float16", "int8", "binary"]
OVERSAMPLING: Final = 4
FILE: Final = "small.faiss"
MEAN: Final = "small_mean.npy"

_FACTORY: Final = {"float16": "SQfp16", "int8": "SQ8"}
_QUERY_ROWS: Final = 32
"""Queries that are rescored together: their candidates' full vectors are in memory."""


class SmallFormat(BaseModel):
    """What the small vectors of an index are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: SmallKind
    dims: int

    @property
    def bytes(self) -> int:
        """Of a vector."""
        return {"float16": 2 * self.dims, "int8": self.dims, "binary": -(-self.dims // 8)}[self.kind]

    def check(self, dim: int) -> None:
        """Raises ConfigError if vectors of `dim` dimensions have no such form."""
        if not 1 <= self.dims <= dim:
            raise ConfigError(f"--dims {self.dims}: the vectors have {dim}", f"1 to {dim}")
        if self.kind == "binary" and self.dims % 8:
            raise ConfigError(f"--dims {self.dims}: binary vectors are whole bytes", "a multiple of 8")


def truncate(vectors: NDArray[np.floating], dims: int) -> Vectors:
    """The first dimensions, of unit length."""
    return normalise(vectors[:, :dims])


class SmallVectors:
    """Small vectors in memory. Positions are those of the full ones."""

    def __init__(self, form: SmallFormat, vectors: Any, mean_D: Vectors) -> None:
        """vectors: faiss's index. mean_D: of the truncated vectors; signs are taken around it."""
        self.form, self._vectors, self._mean_D = form, vectors, mean_D

    @classmethod
    def build(cls, form: SmallFormat, sample: Vectors, blocks: Iterable[Vectors]) -> SmallVectors:
        """sample: vectors from which ranges and mean are taken. blocks: all, in order, of full size."""
        form.check(sample.shape[1])
        sample_SD = truncate(sample, form.dims)
        if form.kind == "binary":
            made = cls(form, faiss.IndexBinaryFlat(form.dims), sample_SD.mean(0))
            for block_CD in blocks:
                made._vectors.add(made._bits(truncate(block_CD, form.dims)))
            return made
        made = cls(form, faiss.index_factory(form.dims, _FACTORY[form.kind], faiss.METRIC_INNER_PRODUCT), sample_SD.mean(0))
        made._vectors.train(sample_SD)
        for block_CD in blocks:
            made._vectors.add(truncate(block_CD, form.dims))
        return made

    @classmethod
    def read(cls, directory: Path, form: SmallFormat) -> SmallVectors:
        """Raises InputError for files that are missing or of something else."""
        again = f"run `mbeir-cot index … --small {form.kind}` again"
        read = faiss.read_index_binary if form.kind == "binary" else faiss.read_index
        vectors = read_faiss(directory / FILE, read, again)
        mean_D = np.array(open_array(directory / MEAN, str(directory / MEAN), again))
        if vectors.d != form.dims or mean_D.shape != (form.dims,):
            raise InputError(f"{directory / FILE} has {vectors.d} dimensions, not {form.dims}", again)
        return cls(form, vectors, mean_D)

    def write(self, directory: Path) -> None:
        write = faiss.write_index_binary if self.form.kind == "binary" else faiss.write_index
        write_faiss(directory / FILE, write, self._vectors)
        write_array(directory / MEAN, self._mean_D)

    def __len__(self) -> int:
        return int(self._vectors.ntotal)

    def search(self, queries: Vectors, k: int) -> NDArray[np.int64]:
        """(queries, k): positions of the nearest, best first. queries: full size. Unfilled places: MISSING."""
        small_QD = truncate(queries, self.form.dims)
        given = self._bits(small_QD) if self.form.kind == "binary" else small_QD
        positions_QK: NDArray[np.int64] = self._vectors.search(given, k)[1]
        return positions_QK

    def _bits(self, vectors_CD: Vectors) -> NDArray[np.uint8]:
        return np.packbits(vectors_CD > self._mean_D, axis=1)


def rescore(queries: Vectors, positions: NDArray[np.int64], fetch: Callable[[NDArray[np.int64]], Vectors], k: int) -> TopK:
    """The k best of each query's candidates by the exact inner product; the latest first among equals, as in exact search.

    queries: (n, dim), unit length. positions: (n, candidates). fetch: full unit vectors of positions, (m, dim).
    """
    parts = []
    for start in range(0, len(queries), _QUERY_ROWS):
        part_QK = positions[start : start + _QUERY_ROWS]
        held, places = np.unique(part_QK, return_inverse=True)
        vectors_CD = fetch(np.maximum(held, 0))
        found_QKD = vectors_CD[places.reshape(part_QK.shape)]
        scores_QK = np.matmul(found_QKD, queries[start : start + _QUERY_ROWS, :, None])[..., 0]
        scores_QK[part_QK == MISSING] = -np.inf
        best = sort_hits(part_QK, scores_QK)
        parts.append(TopK(best.positions[:, :k], best.scores[:, :k]))
    if not parts:
        return TopK(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))
    return TopK(np.concatenate([part.positions for part in parts]), np.concatenate([part.scores for part in parts]))


def recall(exact: NDArray[np.int64], given: NDArray[np.int64]) -> float:
    """Share of the exact k best that `given` has among its own k."""
    k = exact.shape[1]
    shared = [
        len(set(exact_K.tolist()) & set(given_K.tolist()) - {MISSING}) / k
        for exact_K, given_K in zip(exact, given[:, :k], strict=True)
    ]
    return float(np.mean(shared)) if shared else 1.0
