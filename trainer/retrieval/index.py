"""A corpus, embedded once, to be searched by one embedder.

INDEX/index.json              what it is: embedder, pools, dimension
INDEX/corpus_embed.npy        fp16 vectors, and their int64 ids in corpus_ids.npy (UniIR's layout)
INDEX/approximate.faiss       for serving only, where it was asked for
INDEX/unreadable.json         candidates that were left out (data.skip_unreadable), where there are any
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.files.durable import replace_text
from pipeline.mbeir.layout import Layout, Split
from pipeline.mbeir.pools import CandidatePool
from pipeline.meter import Meter
from schemas.errors import ConfigError, InputError
from schemas.mbeir import DATASET_TASKS, Candidate, unhash_did
from schemas.os_errors import explained
from schemas.training import RouteChoice
from trainer.data.unreadable import LeftOut, load_list, save_list
from trainer.embedding.adaptive import QueryEmbedding
from trainer.embedding.embed import embed_pool, left_out_path
from trainer.embedding.files import ids_path, load_embeddings, not_finite
from trainer.embedding.trace_embedder import DEFAULT_INSTRUCTION, TextOrImage, TraceEmbedder
from trainer.embedding.vectors import Vectors, blocks, normalised
from trainer.embedding.workers import Workers
from trainer.retrieval.topk import MISSING, TopK, top_k

_CARD: Final = "index.json"
_VECTORS: Final = "corpus_embed.npy"
_APPROXIMATE: Final = "approximate.faiss"
UNREADABLE: Final = "unreadable.json"
_TRAINING_VECTORS: Final = 200_000


class IndexMetadata(BaseModel):
    """What an index holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    run: Path
    """The run (or exported model) whose embedder made it."""
    variant: str
    embedder_sha256: str
    base: str | None = None
    """What a model that is no run was laid on; a run knows."""
    mbeir: Path
    cache: Path | None
    pools: tuple[str, ...]
    """Relative to the M-BEIR root, in the order of the vectors."""
    count: int
    dim: int
    approximate: str | None = None
    """faiss's factory string."""

    @property
    def overrides(self) -> list[str]:
        """Settings that a run has in it and a model has not."""
        return [f"data.mbeir={self.mbeir}", f"model.base={self.base}"] if self.base is not None else []


class Hit(NamedTuple):
    score: float
    candidate: Candidate


class Found(NamedTuple):
    """A query's embedding, with its route and trace, and its hits, best first."""

    query: QueryEmbedding
    hits: list[Hit]


def pools_of(layout: Layout, split: Split, names: Sequence[str]) -> list[Path]:
    """Pool files: the named dataset-tasks' local pools, or the global one of the split."""
    if not names:
        path = layout.global_pool(split)
        if not path.is_file():
            raise InputError(f"{path} is not there", "download cand_pool/global/, or name local pools with --pool")
        return [path]
    known = {task.name: task for task in DATASET_TASKS}
    found = []
    for name in names:
        if name not in known:
            raise ConfigError(f"--pool {name}: unknown", f"one of {', '.join(known)}")
        local = layout.local_pool(known[name], split)
        if local is None or not local.is_file():
            raise InputError(f"{local or name}: no such pool in {layout.root}", "download cand_pool/local/")
        found.append(local)
    return list(dict.fromkeys(found))


def build_index(
    out: Path, card: IndexMetadata, paths: Sequence[Path], workers: Workers, *, skip: bool = False, quiet: bool = False
) -> Index:
    """Embeds the pools part by part (parts on disk are kept) and writes the index."""
    file = out / _CARD
    if file.is_file() and (old := Index.open(out).card).embedder_sha256 == card.embedder_sha256 and old.pools == card.pools:
        if skip or not load_list(out / UNREADABLE):
            return Index.open(out)
        raise ConfigError(f"{out} was built without what cannot be read", "name another --out, or data.skip_unreadable=true")
    if file.exists() or (out.exists() and any(out.iterdir()) and not (out / "parts.json").is_file()):
        raise ConfigError(f"{out} holds something else", "name another --out, or remove that directory")
    out.mkdir(parents=True, exist_ok=True)
    owner = json.dumps({"embedder": card.embedder_sha256, "pools": card.pools} | ({"skip_unreadable": True} if skip else {}))
    marker = out / "parts.json"
    if marker.is_file() and marker.read_text(encoding="utf-8") != owner:
        raise ConfigError(f"{out} holds the parts of another index", "name another --out, or remove that directory")
    marker.write_text(owner, encoding="utf-8")
    pools = [CandidatePool.open(path, card.cache) for path in paths]
    parts = [out / f"{path.stem}_embed.npy" for path in paths]
    with Meter("candidates", sum(map(len, pools)), unit="candidates", quiet=quiet) as meter:
        left_out: list[LeftOut] = []
        for pool, part in zip(pools, parts, strict=True):
            ids = np.asarray(pool.hashed_dids, np.int64)
            left_out += embed_pool(part, partial(workers.embed, pool), ids, meter.advance)
    (out / UNREADABLE).unlink(missing_ok=True)
    if left_out:
        save_list(out / UNREADABLE, left_out)
    found = [load_embeddings(part) for part in parts]
    dim = found[0].vectors.shape[1]
    whole = sum(len(one.ids) for one in found)
    joined = np.lib.format.open_memmap(out / _VECTORS, mode="w+", dtype=np.float16, shape=(whole, dim))  # type: ignore[no-untyped-call]
    start = 0
    for one in found:
        joined[start : start + len(one.ids)] = one.vectors
        start += len(one.ids)
    joined.flush()
    np.save(out / "corpus_ids.npy", np.concatenate([one.ids for one in found]), allow_pickle=False)
    replace_text(file, card.model_copy(update={"count": whole, "dim": dim}).model_dump_json(indent=1) + "\n")
    for part in parts:
        part.unlink()
        ids_path(part).unlink()
        left_out_path(part).unlink(missing_ok=True)
    marker.unlink()
    return Index.open(out)


class Index:
    """An index on disk, memory-mapped."""

    def __init__(self, directory: Path, card: IndexMetadata) -> None:
        self.directory, self.card = directory, card
        self.vectors: NDArray[np.float16] = np.load(directory / _VECTORS, mmap_mode="r", allow_pickle=False)
        self.ids: NDArray[np.int64] = np.load(directory / "corpus_ids.npy", mmap_mode="r", allow_pickle=False)
        if self.vectors.shape != (card.count, card.dim) or self.ids.shape != (card.count,):
            raise InputError(
                f"{directory} is damaged: vectors {self.vectors.shape}, ids {self.ids.shape}, card {(card.count, card.dim)}",
                "build the index again",
            )
        self._pools: list[CandidatePool] | None = None
        self._approximate: Any = None

    @classmethod
    def open(cls, directory: str | Path) -> Index:
        """What `mbeir-cot index` wrote. Raises InputError for what is none, or is damaged."""
        directory = Path(directory)
        try:
            card = IndexMetadata.model_validate_json((directory / _CARD).read_bytes())
            return cls(directory, card)
        except (OSError, ValidationError, ValueError) as error:
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                raise InputError(f"the index {directory} cannot be read: {error}", explained(error).remedy) from error
            raise InputError(f"{directory} is no index: {error}", "build it with `mbeir-cot index`") from error

    def search(self, queries: NDArray[np.floating], k: int, *, approximate: bool = False) -> TopK:
        """The k best for vectors of shape (n, dim), best first; exact, unless asked otherwise.

        Raises InputError where the dimensions differ, or a vector is not finite.
        """
        if queries.shape[1] != self.card.dim:
            raise InputError(
                f"queries have {queries.shape[1]} dimensions, the index {self.card.dim}", "use the embedder that made the index"
            )
        if not np.isfinite(queries).all():
            rows = np.flatnonzero(~np.isfinite(queries).all(1))
            raise InputError(
                f"{len(rows):,} of {len(queries):,} query vectors are not finite (NaN or inf): rows {_few(rows)}",
                "embed them again; where a model gives such vectors, it diverged or needs another model.dtype",
            )
        wanted = normalised(queries)
        if not approximate:
            return top_k(wanted, self._blocks(), k)
        scores, positions = self._faiss().search(wanted, k)
        return TopK(positions, scores)

    def embedder(self, *, device: str | None = None) -> TraceEmbedder:
        """The one that made it. Raises InputError where the run or model it was loaded from has other weights now."""
        found = TraceEmbedder.load(self.card.run, self.card.variant, device=device, overrides=self.card.overrides)
        self._check_embedder(found)
        return found

    def find(
        self,
        queries: Sequence[TextOrImage],
        embedder: TraceEmbedder,
        *,
        k: int = 10,
        instruction: str | Sequence[str] = DEFAULT_INSTRUCTION,
        route: RouteChoice = "learned",
        approximate: bool = False,
    ) -> list[Found]:
        """Texts and pictures embedded by `embed_queries`, searched, with the candidates that were found.

        Raises InputError for an embedder that did not make the index, and what `embed_queries` and `search` raise.
        """
        self._check_embedder(embedder)
        if not queries:
            return []
        embedded = embedder.embed_queries(queries, instruction=instruction, route=route)
        found = self.search(np.stack([one.vector.numpy() for one in embedded]), k, approximate=approximate)
        return [Found(one, hits) for one, hits in zip(embedded, self.hits(found), strict=True)]

    def _check_embedder(self, embedder: TraceEmbedder) -> None:
        if embedder.sha256 != self.card.embedder_sha256:
            raise InputError(
                f"the embedder is not the one that made {self.directory} ({self.card.variant} of {self.card.run})",
                "use Index.embedder(), or build the index again",
            )

    def make_approximate(self, factory: str) -> None:
        """Adds a faiss index made by this factory string, e.g. ``HNSW32`` or ``IVF4096,SQfp16``. It holds all in memory."""
        try:
            found = faiss.index_factory(self.card.dim, factory, faiss.METRIC_INNER_PRODUCT)
            if not found.is_trained:
                rng = np.random.default_rng(0)
                chosen = np.sort(rng.permutation(self.card.count)[:_TRAINING_VECTORS])
                found.train(normalised(self.vectors[chosen]))
        except RuntimeError as error:
            raise ConfigError(
                f"--approximate {factory}: {_said(error)}", "see faiss's index factory; HNSW32 fits most"
            ) from error
        for block in self._blocks():
            found.add(block)
        faiss.write_index(found, str(self.directory / _APPROXIMATE))
        self.card = self.card.model_copy(update={"approximate": factory})
        (self.directory / _CARD).write_text(self.card.model_dump_json(indent=1) + "\n", encoding="utf-8")
        self._approximate = found

    def recall(self, queries: NDArray[np.floating], k: int) -> float:
        """Share of the exact k best that the approximate search finds too."""
        exact, near = self.search(queries, k).positions, self.search(queries, k, approximate=True).positions
        return float(
            np.mean([len(set(a.tolist()) & set(b.tolist()) - {MISSING}) / k for a, b in zip(exact, near, strict=True)])
        )

    def hits(self, found: TopK) -> Iterator[list[Hit]]:
        """The candidates of each query's hits."""
        for row, scores in zip(found.positions, found.scores, strict=True):
            there = [(int(i), float(s)) for i, s in zip(row, scores, strict=True) if i != MISSING]
            dids = [unhash_did(int(self.ids[i])) for i, _ in there]
            yield [Hit(score, candidate) for (_, score), candidate in zip(there, self.candidates(dids), strict=True)]

    def candidates(self, dids: Sequence[str]) -> list[Candidate]:
        if self._pools is None:
            self._pools = [CandidatePool.open(self.card.mbeir / name, self.card.cache) for name in self.card.pools]
        found: dict[str, Candidate] = {}
        for pool in self._pools:
            there = [did for did in dids if did not in found and did in pool]
            found |= dict(zip(there, pool.fetch(there), strict=True))
        return [found[did] for did in dids]

    def _blocks(self) -> Iterator[Vectors]:
        where = str(self.directory / _VECTORS)
        return blocks(self.vectors, wrong=lambda rows: not_finite(where, rows, self.ids, unhash_did))

    def _faiss(self) -> Any:
        if self._approximate is None:
            path = self.directory / _APPROXIMATE
            if not path.is_file():
                raise InputError(
                    f"{self.directory} has no approximate index", "build it with `mbeir-cot index … --approximate HNSW32`"
                )
            self._approximate = faiss.read_index(str(path))
        return self._approximate


def _few(rows: NDArray[np.int64]) -> str:
    return ", ".join(map(str, rows[:5].tolist())) + (", …" if len(rows) > 5 else "")


def _said(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
