"""A corpus, embedded once, that one embedder searches.

INDEX/index.json              metadata: embedder, pools, dimension
INDEX/corpus_embed.npy        fp16 vectors, and their int64 ids in corpus_ids.npy (UniIR's layout)
INDEX/approximate.faiss       for serving only, if it was asked for
INDEX/small.faiss             small vectors, if they were asked for (`small_vectors`), and small_mean.npy
INDEX/unreadable.json         candidates that were left out (data.skip_unreadable), if any
INDEX/index.log               what happened while it was built, and when; embed-N.log is that of Ray actor N
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipeline.files.durable import replace_text
from pipeline.files.state import read_model
from pipeline.mbeir.candidates import fetch_held
from pipeline.mbeir.pools import CandidatePool
from schemas.errors import ConfigError, InputError
from schemas.mbeir import Candidate, unhash_did
from schemas.training import RouteChoice
from trainer.embedding.files import open_array, refuse_not_finite
from trainer.embedding.query_embedding import QueryEmbedding
from trainer.embedding.trace_embedder import DEFAULT_INSTRUCTION, TextOrImage, TraceEmbedder
from trainer.embedding.vectors import Vectors, normalise, read_blocks
from trainer.retrieval.faiss_files import read_faiss, write_faiss
from trainer.retrieval.small_vectors import OVERSAMPLING, SmallFormat, SmallKind, SmallVectors, recall, rescore, truncate
from trainer.retrieval.topk import MISSING, TopK, top_k

METADATA: Final = "index.json"
VECTORS: Final = "corpus_embed.npy"
IDS: Final = "corpus_ids.npy"
_APPROXIMATE: Final = "approximate.faiss"
UNREADABLE: Final = "unreadable.json"
LOG: Final = "index.log"
_TRAINING_VECTORS: Final = 200_000


def _again(directory: Path) -> str:
    """`index` does not write over what is there."""
    return f"remove {directory}, then run the command that made it again, such as `mbeir-cot index`"


class IndexMetadata(BaseModel):
    """The contents of `index.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    run: Path
    """The run (or model) whose embedder made it."""
    variant: str
    embedder_sha256: str
    base: str | None = None
    """The base of a model that is not part of a run; a run's settings name it."""
    mbeir: Path
    cache: Path | None
    pools: tuple[str, ...]
    """Relative to the M-BEIR root, in the order of the vectors."""
    count: int
    dim: int
    approximate: str | None = None
    """faiss's factory string."""
    small: SmallFormat | None = None

    @property
    def overrides(self) -> list[str]:
        """Settings that a run holds and a model does not."""
        return [f"data.mbeir={self.mbeir}", f"model.base={self.base}"] if self.base is not None else []


class Hit(NamedTuple):
    score: float
    candidate: Candidate


class SearchResult(NamedTuple):
    """A query's embedding, with its route and trace, and its hits, best first."""

    query: QueryEmbedding
    hits: list[Hit]


class SmallRecall(NamedTuple):
    form: SmallFormat
    alone: float
    rescored: float


class EmbedsQueries(Protocol):
    """What `find` needs of an embedder: a `TraceEmbedder`, or a served one."""

    @property
    def sha256(self) -> str | None: ...

    def embed_queries(
        self, queries: Sequence[TextOrImage], *, instruction: str | Sequence[str], route: RouteChoice
    ) -> list[QueryEmbedding]: ...


class Index:
    """An index on disk, memory-mapped."""

    def __init__(self, directory: Path, metadata: IndexMetadata) -> None:
        self.directory, self.metadata = directory, metadata
        vectors, ids = (
            open_array(directory / name, f"the index's {directory / name}", _again(directory)) for name in (VECTORS, IDS)
        )
        self.vectors: NDArray[np.float16] = vectors
        self.ids: NDArray[np.int64] = ids
        expected = (metadata.count, metadata.dim)
        if self.vectors.shape != expected or self.ids.shape != expected[:1]:
            raise InputError(
                f"{directory} is damaged: vectors {self.vectors.shape}, ids {self.ids.shape}, {METADATA} {expected}",
                _again(directory),
            )
        self._pools: list[CandidatePool] | None = None
        self._approximate: Any = None
        self._small: SmallVectors | None = None

    @classmethod
    def open(cls, directory: str | Path) -> Index:
        """A directory that `mbeir-cot index` wrote. Raises InputError if it is no index, or damaged."""
        directory = Path(directory)
        try:
            return cls(directory, read_model(directory / METADATA, IndexMetadata, _again(directory)))
        except InputError as error:
            if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError) or (directory / METADATA).exists():
                raise
            raise InputError(f"{directory} is no index: it has no {METADATA}", "build it with `mbeir-cot index`") from error

    def search(
        self,
        queries: NDArray[np.floating],
        k: int,
        *,
        approximate: bool = False,
        small: bool = False,
        dims: int | None = None,
    ) -> TopK:
        """The k best candidates for vectors of shape (n, dim), best first; exact unless `approximate` or `small`.

        small: candidates from the small vectors, with exact scores. dims: compare only the first ones, exactly.
        Raises InputError if the dimensions differ, or a vector is not finite; ConfigError for `dims` beside another way.
        """
        if dims is not None and (approximate or small or not 1 <= dims <= self.metadata.dim):
            raise ConfigError(f"--dims {dims} in a search", f"1 to {self.metadata.dim}, without --approximate and --small")
        if queries.shape[1] != self.metadata.dim:
            raise InputError(
                f"queries have {queries.shape[1]} dimensions, the index {self.metadata.dim}",
                "use the embedder that made the index",
            )
        if not np.isfinite(queries).all():
            indices = np.flatnonzero(~np.isfinite(queries).all(1))
            named = ", ".join(map(str, indices[:5].tolist())) + (", …" if len(indices) > 5 else "")
            raise InputError(
                f"{len(indices):,} of {len(queries):,} query vectors are not finite (NaN or inf): indices {named}",
                "embed them again; a model that gives such vectors has diverged or needs another model.dtype",
            )
        queries_QD = normalise(queries)
        if small:
            positions_QK = self._load_small().search(queries_QD, min(OVERSAMPLING * k, max(self.metadata.count, k)))
            return rescore(queries_QD, positions_QK, lambda held: normalise(self.vectors[held]), k)
        if dims is not None:
            return top_k(truncate(queries_QD, dims), (truncate(block_CD, dims) for block_CD in self.blocks()), k)
        if not approximate:
            return top_k(queries_QD, self.blocks(), k)
        scores, positions = self._load_approximate().search(queries_QD, k)
        return TopK(positions, scores)

    def embedder(self, *, device: str | None = None) -> TraceEmbedder:
        """Loads the embedder that made the index. Raises InputError if its run or model has other weights now."""
        made_by = self.metadata
        embedder = TraceEmbedder.load(made_by.run, made_by.variant, device=device, overrides=made_by.overrides)
        self._check_embedder(embedder)
        return embedder

    def find(
        self,
        queries: Sequence[TextOrImage],
        embedder: EmbedsQueries,
        *,
        k: int = 10,
        instruction: str | Sequence[str] = DEFAULT_INSTRUCTION,
        route: RouteChoice = "learned",
        approximate: bool = False,
        small: bool = False,
        dims: int | None = None,
    ) -> list[SearchResult]:
        """Embeds texts and images with `embed_queries`, searches, and fetches the candidates of the hits.

        Raises InputError for an embedder that did not make the index, and what `embed_queries` and `search` raise.
        """
        self._check_embedder(embedder)
        if not queries:
            return []
        embedded = embedder.embed_queries(queries, instruction=instruction, route=route)
        vectors_QD = np.stack([query.vector.numpy() for query in embedded])
        top = self.search(vectors_QD, k, approximate=approximate, small=small, dims=dims)
        return [SearchResult(query, hits) for query, hits in zip(embedded, self.fetch_hits(top), strict=True)]

    def _check_embedder(self, embedder: EmbedsQueries) -> None:
        if embedder.sha256 != self.metadata.embedder_sha256:
            raise InputError(
                f"the embedder is not the one that made {self.directory} ({self.metadata.variant} of {self.metadata.run})",
                "use Index.embedder(), or build the index again",
            )

    def make_approximate(self, factory: str) -> None:
        """Adds a faiss index by its factory string, e.g. ``HNSW32`` or ``IVF4096,SQfp16``. The corpus must fit in memory."""
        try:
            approximate = faiss.index_factory(self.metadata.dim, factory, faiss.METRIC_INNER_PRODUCT)
            if not approximate.is_trained:
                approximate.train(self._sample())
        except RuntimeError as error:
            cause = str(error).strip().splitlines()[-1]
            raise ConfigError(f"--approximate {factory}: {cause}", "see faiss's index factory; HNSW32 fits most") from error
        for block_CD in self.blocks():
            approximate.add(block_CD)
        write_faiss(self.directory / _APPROXIMATE, faiss.write_index, approximate)
        self._update(approximate=factory)
        self._approximate = approximate

    def make_small(self, kind: SmallKind, dims: int | None = None) -> SmallVectors:
        """Adds small vectors of the first `dims` dimensions [default: all], in place of those that there were."""
        form = SmallFormat(kind=kind, dims=dims if dims is not None else self.metadata.dim)
        self._small = SmallVectors.build(form, self._sample(), self.blocks())
        self._small.write(self.directory)
        self._update(small=form)
        return self._small

    def measure_recall(self, queries: NDArray[np.floating], k: int, **way: Any) -> float:
        """Share of the exact k best that another way to search finds too [default: the approximate one]."""
        return recall(self.search(queries, k).positions, self.search(queries, k, **(way or {"approximate": True})).positions)

    def measure_small(self, queries: NDArray[np.floating], k: int) -> SmallRecall:
        """Recall@k of the small vectors against exact search: alone, and with what they find rescored."""
        exact_QK, small = self.search(queries, k).positions, self._load_small()
        alone = recall(exact_QK, small.search(normalise(queries), k))
        return SmallRecall(small.form, alone, recall(exact_QK, self.search(queries, k, small=True).positions))

    def _update(self, **changed: Any) -> None:
        self.metadata = self.metadata.model_copy(update=changed)
        replace_text(self.directory / METADATA, self.metadata.model_dump_json(indent=1) + "\n")

    def _sample(self) -> Vectors:
        """Vectors from which faiss learns, of unit length."""
        chosen = np.sort(np.random.default_rng(0).permutation(self.metadata.count)[:_TRAINING_VECTORS])
        return normalise(self.vectors[chosen])

    def fetch_hits(self, top: TopK) -> Iterator[list[Hit]]:
        """The candidates of each query's hits."""
        for positions_K, scores_K in zip(top.positions, top.scores, strict=True):
            filled = [(int(i), float(s)) for i, s in zip(positions_K, scores_K, strict=True) if i != MISSING]
            dids = [unhash_did(int(self.ids[i])) for i, _ in filled]
            yield [Hit(score, candidate) for (_, score), candidate in zip(filled, self.fetch_candidates(dids), strict=True)]

    def fetch_candidates(self, dids: Sequence[str]) -> list[Candidate]:
        if self._pools is None:
            self._pools = [CandidatePool.open(self.metadata.mbeir / name, self.metadata.cache) for name in self.metadata.pools]
        candidates = fetch_held(self._pools, dids)
        return [candidates[did] for did in dids]

    def blocks(self) -> Iterator[Vectors]:
        """The normalised vectors in order, block by block. Raises InputError at the end if some are not finite."""
        where = str(self.directory / VECTORS)
        return read_blocks(self.vectors, wrong=lambda indices: refuse_not_finite(where, indices, self.ids, unhash_did))

    def _load_small(self) -> SmallVectors:
        if self._small is None:
            if self.metadata.small is None:
                raise InputError(f"{self.directory} has no small vectors", "build them with `mbeir-cot index … --small int8`")
            self._small = SmallVectors.read(self.directory, self.metadata.small)
        return self._small

    def _load_approximate(self) -> Any:
        if self._approximate is None:
            if self.metadata.approximate is None:
                raise InputError(
                    f"{self.directory} has no approximate index", "build it with `mbeir-cot index … --approximate HNSW32`"
                )
            again = f"run `mbeir-cot index … --approximate {self.metadata.approximate}` again"
            self._approximate = read_faiss(self.directory / _APPROXIMATE, faiss.read_index, again)
        return self._approximate
