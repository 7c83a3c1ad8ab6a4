"""Measures what traces do for the embedding, under a frozen embedder.

Each query is embedded twice, at once and after its trace. It is compared with a sample of the training's candidates and its
listed hard negatives; its positives, and those of queries that share one with it, are no negatives. The *margin* is the
score of the best positive minus that of the best negative, the *rank* that of the best positive among the negatives. A
trace's utility is the margin with it minus the margin without.

The form without traces (`by failure`) takes the negative of the margin without a trace: above 0 where the embedder fails.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.dataset.training_store import training_store
from schemas.errors import InputError
from schemas.training import TrainConfig, Variant
from schemas.utility import UtilityReport
from trainer.data.dataset import Item, Records
from trainer.embedding.vectors import Vectors, normalise
from trainer.embedding.workers import Workers
from trainer.retrieval.index import Index
from trainer.retrieval.negatives import shared_positives
from trainer.retrieval.training_pool import LeftOut, PositionsOfDids, embed_items, training_index

logger = logging.getLogger(__name__)

FILE: Final = "utility.parquet"
REPORT: Final = "report.json"
_AT_ONCE: Final = 1_024
_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("utility", pa.float32()),
        pa.field("rank_without", pa.int32()),
        pa.field("rank_with", pa.int32()),
        pa.field("margin_without", pa.float32()),
        pa.field("margin_with", pa.float32()),
    ]
)


class Standing(NamedTuple):
    """Where a query's best positive stands among the candidates."""

    rank: int
    margin: float


class Measured(NamedTuple):
    """notices: lines about what was left out because it cannot be read."""

    file: Path
    report: UtilityReport
    notices: list[str]


def measure_utility(
    config: TrainConfig,
    variant: Variant,
    model: Path,
    out: Path,
    *,
    dataset: str,
    sample: int,
    by_failure: bool,
    workers: Workers,
) -> Measured:
    """Writes ``utility.parquet`` and ``report.json`` below `out`, with the index of the candidates.

    dataset: whose traces (or, with `by_failure`, queries) are measured. sample: candidates compared with.
    Raises InputError, and keeps what is there, for a dataset without traces, of another M-BEIR, or of which too few queries can
    be read (`data.most_unreadable`).
    """
    records = Records.load(dataset)
    traces = records.traces()
    items = [item for item in map(records.item, range(len(records))) if by_failure or item.id in traces]
    if not items:
        raise InputError(
            f"{dataset} has no record with a trace", "build it with --set route.threshold=0, or measure with --by-failure"
        )
    index = training_index(config, variant, model, out, records.split, workers=workers)
    most = config.data.most_unreadable
    without, unread = embed_items(items, {}, workers, most=most, name=dataset)
    left_out = LeftOut.of(index, unread)
    given = {} if by_failure else embed_items(items, traces, workers, most=most, name=dataset).vectors
    items = [item for item in items if item.id in without and (by_failure or item.id in given)]
    pool = _Pool(index, items, sample)
    rows = []
    standings = zip(items, pool.standings(without), pool.standings(given) if given else [None] * len(items), strict=True)
    for item, before, after in standings:
        if before is None:
            continue
        utility = after.margin - before.margin if after is not None else -before.margin
        rows.append(
            {
                "id": item.id,
                "utility": utility,
                "rank_without": before.rank,
                "rank_with": after.rank if after is not None else None,
                "margin_without": before.margin,
                "margin_with": after.margin if after is not None else None,
            }
        )
    if not rows:
        raise InputError(
            "the candidate pools hold no positive of any query",
            "the dataset was built from another M-BEIR; name that one in data.mbeir",
        )
    about = {
        "embedder": index.metadata.embedder_sha256,
        "dataset": records.digest,
        "form": "failure" if by_failure else "trace",
    }
    new = (out / FILE).with_suffix(".new")
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA.with_metadata(about)), new, compression="zstd")
    new.replace(out / FILE)
    report = _report(rows, pool.size, left_out)
    (out / REPORT).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Measured(out / FILE, report, left_out.save(out, index, training_store(config)))


class _Pool:
    """The candidates that queries are compared with."""

    def __init__(self, index: Index, items: Sequence[Item], sample: int) -> None:
        self._index, self._items = index, items
        self._positions = PositionsOfDids(index)
        self._masks = shared_positives([item.positives for item in items])
        count = index.metadata.count
        self._sampled: NDArray[np.int64] = np.sort(np.random.default_rng(0).permutation(count)[:sample])
        self._sample_CD = normalise(np.asarray(index.vectors[self._sampled]))
        self.size = len(self._sampled)

    def standings(self, vectors: Mapping[str, NDArray[np.float16]]) -> Iterator[Standing | None]:
        """Of each item, in order; None where the index has no positive of it."""
        for start in range(0, len(self._items), _AT_ONCE):
            part = self._items[start : start + _AT_ONCE]
            queries_QD = normalise(np.stack([vectors[item.id] for item in part]))
            scores_QC = queries_QD @ self._sample_CD.T
            for number, (query_D, scores_C) in enumerate(zip(queries_QD, scores_QC, strict=True), start):
                yield self._standing(number, query_D, scores_C)

    def _standing(self, number: int, query_D: Vectors, scores_C: Vectors) -> Standing | None:
        item = self._items[number]
        positives = self._positions(item.positives)
        if not positives:
            return None
        masked = self._positions(sorted(self._masks[number]))
        best = float((self._unit(positives) @ query_D).max())
        kept = scores_C[~np.isin(self._sampled, masked)]
        known = {*masked, *self._in_sample(self._positions(item.hard_negatives))}
        listed = [position for position in self._positions(item.hard_negatives) if position not in known]
        if listed:
            kept = np.concatenate([kept, self._unit(listed) @ query_D])
        if not len(kept):
            return Standing(1, best)
        return Standing(int((kept > best).sum()) + 1, best - float(kept.max()))

    def _in_sample(self, positions: Sequence[int]) -> set[int]:
        return set(np.intersect1d(self._sampled, np.array(positions, np.int64)).tolist())

    def _unit(self, positions: Sequence[int]) -> Vectors:
        return normalise(np.asarray(self._index.vectors[list(positions)]))


def _report(rows: Sequence[dict[str, Any]], size: int, left_out: LeftOut) -> UtilityReport:
    def mean(name: str) -> float | None:
        values = [row[name] for row in rows if row[name] is not None]
        return round(float(np.mean(values)), 4) if values else None

    return UtilityReport(
        queries=len(rows),
        helped=sum(row["utility"] > 0 for row in rows),
        compared_with=size,
        rank_without=mean("rank_without") or 0.0,
        rank_with=mean("rank_with"),
        margin_without=mean("margin_without") or 0.0,
        margin_with=mean("margin_with"),
        unreadable_queries=len(left_out.queries),
        unreadable_candidates=len(left_out.candidates),
    )
