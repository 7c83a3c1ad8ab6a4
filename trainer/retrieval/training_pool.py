"""A training's own candidates and queries under a trained embedder, for what is measured or mined on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.training_store import training_store
from pipeline.mbeir.image_store import ImageStore
from pipeline.mbeir.layout import Layout
from pipeline.progress_meter import Meter
from schemas.mbeir import Split, hash_did
from schemas.training import TrainConfig, Variant
from trainer.data.dataset import Candidates, Item
from trainer.data.exclusions import Exclusion, describe_exclusions, load_exclusions, refuse_most, save_exclusions
from trainer.embedding.embed import StudentQuery
from trainer.embedding.queries import WINDOW, QueryUnit
from trainer.embedding.recovered_candidates import readable
from trainer.embedding.workers import Workers
from trainer.model.metadata import fingerprint
from trainer.retrieval.index import UNREADABLE, Index, IndexMetadata
from trainer.retrieval.index_builder import build_index

QUERIES: Final = "unreadable_queries.json"
"""Lists the queries that were left out."""


def training_index(config: TrainConfig, variant: Variant, model: Path, out: Path, split: Split, *, workers: Workers) -> Index:
    """The candidates that a training on this split draws from, embedded; resumable.

    In a directory below `out` that is named after the weights: indexes of other weights stay, and are not used.
    """
    layout = Layout.open(config.data.mbeir)
    paths = Candidates.paths(config.data.mbeir, split)
    weights = fingerprint(model)
    metadata = IndexMetadata(
        run=config.out.absolute(),
        variant=variant,
        embedder_sha256=weights,
        mbeir=config.data.mbeir.absolute(),
        cache=config.data.candidate_cache,
        pools=tuple(layout.relative(path) for path in paths),
        count=0,
        dim=0,
    )
    return build_index(out / f"index-{weights[:12]}", metadata, paths, workers, images=training_store(config), data=config.data)


class EmbeddedItems(NamedTuple):
    """vectors: record id -> vector. left_out: the others, by their record's id."""

    vectors: dict[str, NDArray[np.float16]]
    left_out: list[Exclusion]


def embed_items(
    items: Sequence[Item], traces: Mapping[str, str], workers: Workers, *, most: float = 1.0, name: str = "the dataset"
) -> EmbeddedItems:
    """Each query after its trace, or at once where it has none.

    Queries that cannot be read are left out, if the settings allow it. Raises InputError if that is more than the share `most`
    of them. name: the dataset's, for messages.
    """
    units = []
    ids: dict[Any, str] = {}
    for start in range(0, len(items), WINDOW):
        part = items[start : start + WINDOW]
        places = tuple((item.task, item.qid) for item in part)
        ids |= dict(zip(places, (item.id for item in part), strict=True))
        queries = tuple(StudentQuery(item.qid, item.instruction, item.text, item.image, item.parts) for item in part)
        units.append(QueryUnit(places, queries, "always-direct", tuple(traces.get(item.id, "") for item in part)))
    vectors: dict[str, NDArray[np.float16]] = {}
    left_out: list[Exclusion] = []
    with Meter("queries", len(items), unit="queries") as meter:
        for done in workers.embed_queries(units):
            vectors |= {ids[place]: one.vector.numpy() for place, one in done.embeddings.items()}
            left_out += [one._replace(name=ids[place]) for place, one in done.left_out.items()]
            meter.advance(len(done.embeddings) + len(done.left_out))
    if left_out:
        refuse_most(f"the queries of {name}", left_out, len(items), most)
    return EmbeddedItems(vectors, left_out)


class LeftOut(NamedTuple):
    """What of a training cannot be read: candidates of its index, and queries."""

    candidates: list[Exclusion]
    queries: list[Exclusion]

    @classmethod
    def of(cls, index: Index, queries: Sequence[Exclusion]) -> LeftOut:
        return cls(load_exclusions(index.directory / UNREADABLE), list(queries))

    def save(self, out: Path, index: Index, images: ImageStore) -> list[str]:
        """Lists the queries below `out`, where the index is. Returns lines for people."""
        (out / QUERIES).unlink(missing_ok=True)
        lines = []
        if self.queries:
            save_exclusions(out / QUERIES, self.queries)
            lines.append(describe_exclusions("queries", self.queries, out / QUERIES))
        if self.candidates:
            lines.append(describe_exclusions("candidates", self.candidates, index.directory / UNREADABLE))
        if mended := readable(self.candidates, images):
            lines.append(f"{len(mended):,} of them can be read now: remove {index.directory} and run again to embed them too")
        return lines


class PositionsOfDids:
    """Looks up where an index has candidates."""

    def __init__(self, index: Index) -> None:
        hashed = np.asarray(index.ids)
        self._order = np.argsort(hashed, kind="stable")
        self._sorted = hashed[self._order]

    def __call__(self, dids: Iterable[str]) -> list[int]:
        """The positions of those that the index has."""
        hashed = np.array([hash_did(did) for did in dids], np.int64)
        if not len(hashed):
            return []
        at = np.minimum(np.searchsorted(self._sorted, hashed), len(self._sorted) - 1)
        found: list[int] = self._order[at[self._sorted[at] == hashed]].tolist()
        return found
