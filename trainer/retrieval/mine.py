"""Mines hard negatives with a trained embedder: the training's queries against the training's candidates.

1. The candidates are embedded into an index (resumable; an index of the same weights is used again).
2. The queries are embedded as in training: after the teacher's trace where the variant reasons, otherwise at once.
3. One pass over the index finds the best candidates of all queries; `negatives` chooses among them.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from pipeline.dataset.training_store import training_store
from schemas.errors import InputError
from schemas.mbeir import Candidate, unhash_did
from schemas.mining import MiningReport, MiningSettings
from schemas.training import TrainConfig, Variant
from trainer.data.dataset import Candidates, Item, Records
from trainer.data.mined import write_mined
from trainer.embedding.vectors import Vectors, normalise
from trainer.embedding.workers import Workers
from trainer.retrieval.index import Index
from trainer.retrieval.negatives import choose_negatives, shared_positives
from trainer.retrieval.topk import TopK, search_device, top_k
from trainer.retrieval.training_pool import LeftOut, PositionsOfDids, embed_items, training_index
from trainer.retrieval.verdicts import Pair, pass_over_right

logger = logging.getLogger(__name__)

MINED: Final = "mined.parquet"
REPORT: Final = "report.json"
COLLAPSED: Final = 0.9
"""Mean cosine of two candidates above which a report says that the embedder has collapsed."""
_SPREAD_ROWS: Final = 2_000
_LOOKED_UP: Final = 2_048
"""Queries whose candidates are fetched at once."""


class Mined(NamedTuple):
    """notices: lines about what was left out because it cannot be read."""

    file: Path
    report: MiningReport
    notices: list[str]


Judge = Callable[[Sequence[Pair]], Sequence[float | None]]
"""P(yes) of each pair (`verdicts.judge_pairs`)."""


def mine(
    config: TrainConfig,
    variant: Variant,
    model: Path,
    out: Path,
    *,
    settings: MiningSettings,
    workers: Workers,
    judge: Judge | None = None,
) -> Mined:
    """Writes ``mined.parquet``, ``report.json`` and the index below `out`.

    model: the embedder's directory. judge: asks a verifier about the negatives that the rules leave.
    Raises InputError, and keeps what is there, if too few queries can be read (`data.most_unreadable`) or no positive is in
    the pools.
    """
    records = Records.load(config.data.dataset).without(config.data.hold_out)
    index = training_index(config, variant, model, out, records.split, workers=workers)
    items = [records.item(number) for number in range(len(records))]
    traces = {} if variant == "direct" else records.traces()
    vectors, unread = embed_items(items, traces, workers, most=config.data.most_unreadable, name=config.data.dataset)
    left_out = LeftOut.of(index, unread)
    items = [item for item in items if item.id in vectors]
    queries_QD = normalise(np.stack([vectors[item.id] for item in items]))
    del vectors
    logger.info("%d queries against %d candidates", len(items), index.metadata.count)
    found = top_k(queries_QD, index.blocks(), settings.depth, device=search_device(config.device))
    chooser = _Chooser(index, items, settings)
    rows = list(chooser.rows(queries_QD, found))
    if judge is not None:
        rows = chooser.judge(rows, Candidates(config.data.mbeir, records.split, config.data.candidate_cache), judge)
    about = {"embedder": index.metadata.embedder_sha256, "dataset": records.digest, "settings": settings.model_dump_json()}
    write_mined(out / MINED, rows, about)
    report = chooser.report(rows).model_copy(
        update={"unreadable_queries": len(left_out.queries), "unreadable_candidates": len(left_out.candidates)}
    )
    (out / REPORT).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Mined(out / MINED, report, left_out.save(out, index, training_store(config)))


class _Chooser:
    """Applies the rules to all queries, and counts."""

    def __init__(self, index: Index, items: Sequence[Item], settings: MiningSettings) -> None:
        self._index, self._items, self._settings = index, items, settings
        self._positions = PositionsOfDids(index)
        self._masks = shared_positives([item.positives for item in items])
        self._passed: Counter[str] = Counter()
        self._found = 0

    def rows(self, queries_QD: Vectors, top: TopK) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self._items), _LOOKED_UP):
            part = slice(start, start + _LOOKED_UP)
            listed = [self._positions(item.positives) for item in self._items[part]]
            hits = {position for row in top.positions[part].tolist() for position in row if position >= 0}
            contents = self._contents(sorted(hits.union(*listed)))
            for number, positives in enumerate(listed, start):
                yield self._row(number, queries_QD[number], top, positives, contents)

    def _row(
        self, number: int, query_D: Vectors, top: TopK, positives: list[int], contents: Mapping[int, int]
    ) -> dict[str, Any]:
        chosen = choose_negatives(
            query_D,
            top.positions[number],
            top.scores[number],
            masked=frozenset(self._positions(sorted(self._masks[number]))),
            positives=positives,
            contents=contents,
            vectors=self._index.vectors,
            settings=self._settings,
        )
        self._passed.update(chosen.passed)
        self._found += bool(set(positives) & set(top.positions[number].tolist()))
        return {
            "id": self._items[number].id,
            "mined_negatives": [unhash_did(int(self._index.ids[position])) for position in chosen.positions],
            "scores": chosen.scores,
            "positive_score": None if np.isnan(chosen.positive_score) else chosen.positive_score,
        }

    def judge(self, rows: Sequence[dict[str, Any]], candidates: Candidates, ask: Judge) -> list[dict[str, Any]]:
        """The rows with the verifier's P(yes), without negatives that it takes for right."""
        dids = [[item.positives[0], *row["mined_negatives"]] for item, row in zip(self._items, rows, strict=True)]
        known = sorted({did for listed in dids for did in listed})
        by_did = dict(zip(known, candidates.fetch(known), strict=True))
        answers = iter(ask([Pair(item, by_did[did]) for item, listed in zip(self._items, dids, strict=True) for did in listed]))
        kept = []
        for row, listed in zip(rows, dids, strict=True):
            positive, *negatives = [next(answers) for _ in listed]
            kept.append(pass_over_right(row, negatives, self._settings.yes) | {"positive_yes": positive})
            self._passed["right"] += len(negatives) - len(kept[-1]["mined_negatives"])
            self._passed["judged"] += sum(p is not None for p in negatives)
        return kept

    def _contents(self, positions: Sequence[int]) -> dict[int, int]:
        """Position -> digest of the candidate's text and image path."""
        candidates = self._index.fetch_candidates([unhash_did(int(self._index.ids[position])) for position in positions])
        return {position: _digest(one) for position, one in zip(positions, candidates, strict=True)}

    def report(self, rows: Sequence[dict[str, Any]]) -> MiningReport:
        positive = [row["positive_score"] for row in rows if row["positive_score"] is not None]
        if not positive:
            raise InputError(
                "the candidate pools hold no positive of any query",
                "the dataset was built from another M-BEIR; name that one in data.mbeir",
            )
        negative = [score for row in rows for score in row["scores"]]
        return MiningReport(
            queries=len(rows),
            mined=sum(bool(row["mined_negatives"]) for row in rows),
            negatives=len(negative),
            positives=self._passed["positives"],
            duplicates=self._passed["duplicates"],
            skipped=self._passed["skipped"],
            too_close=self._passed["too_close"],
            judged=self._passed["judged"],
            right=self._passed["right"],
            found=round(self._found / len(rows), 4),
            positive_score=round(float(np.mean(positive)), 4),
            negative_score=round(float(np.mean(negative)), 4) if negative else 0.0,
            spread=round(_spread(self._index), 4),
        )


def _spread(index: Index) -> float:
    rows = np.sort(np.random.default_rng(0).permutation(index.metadata.count)[:_SPREAD_ROWS])
    units_CD = normalise(np.asarray(index.vectors[rows]))
    count = len(units_CD)
    return float((np.square(units_CD.sum(0)).sum() - count) / (count * (count - 1))) if count > 1 else 0.0


def _digest(candidate: Candidate) -> int:
    content = f"{candidate.txt or ''}\0{candidate.img_path or ''}".encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
