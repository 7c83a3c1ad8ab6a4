"""Builds with a wanted number of records (`accept.records`): which queries they need.

1. The queries of each kind have an order, drawn by a hash of their ids. They are annotated in rounds along it, each as large as
   the share of accepted queries so far makes likely to be enough.
2. A kind is finished at the query that completes its number. Those after it are left, even if a round has asked about some.
3. The queries up to there are annotated once more, in the order of the dataset. The ledger has all answers to that.

So the dataset is a function of input, settings and answers, whatever the rounds were, and a build that is stopped goes on.
Near-duplicates count once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.chosen_queries import Chosen
from pipeline.dataset.staging import Staging
from pipeline.mbeir.work_list import WorkList, drawn_order, order_key, task_of_key
from schemas.config import BuildConfig
from schemas.mbeir import DATASET_IDS
from schemas.record import Route

logger = logging.getLogger(__name__)

_LEAST_ROUND: Final = 16
_MOST_GROWTH: Final = 4
"""A round asks at most so many times the queries of all rounds before."""

_TRIES: Final = 3
"""How often the choice is made again because requests that had no answer got one meanwhile."""

_NOT_KEPT: Final = -2
_UNKNOWN: Final = -1
_ALWAYS: Final = 0
"""Of a record that no other can repeat."""


class Acceptance:
    """Finds the queries that give the wanted records."""

    def __init__(self, work: WorkList, config: BuildConfig) -> None:
        assert config.accept.records is not None
        self._work, self._settings, self._wanted = work, config.accept, config.accept.records
        self._bypass_repeats = config.on_reject == "bypass"
        drawn = drawn_order(work.keys)
        self._kinds: dict[str, NDArray[np.int64]] = {"all": drawn}
        if config.accept.per == "dataset-task":
            tasks = work.keys[drawn] >> 32
            names = {int(task): "{}_task{}".format(*task_of_key(int(task))) for task in np.unique(tasks)}
            self._kinds = {name: drawn[tasks == task] for task, name in names.items()}
        self._outcome = np.full(len(work), _UNKNOWN, np.int64)
        """Of each query: a record's near-duplicate key, or one of the constants above."""

    def annotate(self, run: Callable[[WorkList, Staging], None], staging: Staging) -> Chosen:
        """Fills `staging` with the rows of the queries that are needed; `run` annotates a work list into a staging."""
        for attempt in range(_TRIES):
            while len(rows := self._next_round()):
                logger.info("a round of %d queries for %d records of each kind", len(rows), self._wanted)
                with Staging(staging.path.with_name("round")) as scratch:
                    part = self._work.chosen(rows)
                    run(part, scratch)
                    self._learn(rows, part, scratch)
            chosen = np.concatenate([order[: self._end(order)] for order in self._kinds.values()])
            chosen.sort()
            before = self._outcome[chosen].copy()
            part = self._work.chosen(chosen)
            staging.clear()
            run(part, staging)
            self._learn(chosen, part, staging)
            if (self._outcome[chosen] == before).all():
                break
            logger.info("answers came late, and change which queries are needed (%d of %d)", attempt + 1, _TRIES)
        return Chosen(part, self._left(chosen), self._short())

    def _next_round(self) -> NDArray[np.int64]:
        """Queries to annotate next; none if every kind has its records or has ended."""
        found = []
        for order in self._kinds.values():
            asked = int((self._outcome[order] != _UNKNOWN).sum())  # always the first ones
            kept = self._kept(order[:asked])
            if kept >= self._wanted or asked == len(order):
                continue
            missing = self._wanted - kept
            size = -(-missing * asked // kept) if kept else max(missing, asked)
            size = max(_LEAST_ROUND, min(size, _MOST_GROWTH * max(asked, self._wanted)))
            found.append(order[asked : asked + size])
        return np.sort(np.concatenate(found)) if found else np.empty(0, np.int64)

    def _learn(self, rows: NDArray[np.int64], part: WorkList, staging: Staging) -> None:
        """Takes down what became of these queries."""
        self._outcome[rows] = _NOT_KEPT
        for number in range(len(staging)):
            records = staging.get(number)[0].select(["dataset", "task_id", "qid", "route"]).to_pylist()
            for record, key in zip(records, staging.keys[number].tolist(), strict=True):
                if self._settings.count == "reasoning" and record["route"] != Route.REASONING:
                    continue
                own = order_key(DATASET_IDS[record["dataset"]], record["task_id"], record["qid"])
                self._outcome[rows[np.searchsorted(part.keys, own)]] = key

    def _counted(self, order: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these queries add a record, (queries,): of near-duplicates the first."""
        outcome = self._outcome[order]
        kept = outcome >= _ALWAYS
        if self._bypass_repeats and self._settings.count == "all":
            return kept  # a near-duplicate becomes a bypass record
        first = np.zeros(len(order), bool)
        first[np.unique(outcome, return_index=True)[1]] = True
        found: NDArray[np.bool_] = kept & ((outcome == _ALWAYS) | first)
        return found

    def _kept(self, order: NDArray[np.int64]) -> int:
        return int(self._counted(order).sum())

    def _end(self, order: NDArray[np.int64]) -> int:
        """The place after the query that completes the number of a kind."""
        return int(np.searchsorted(np.cumsum(self._counted(order)), self._wanted)) + 1

    def _left(self, chosen: NDArray[np.int64]) -> dict[tuple[str, int], int]:
        counts = Counter((self._work.keys >> 32).tolist())
        counts.subtract((self._work.keys[chosen] >> 32).tolist())
        return {task_of_key(task): count for task, count in sorted(counts.items()) if count}

    def _short(self) -> dict[str, int]:
        kept = {name: self._kept(order) for name, order in self._kinds.items()}
        return {name: count for name, count in kept.items() if count < self._wanted}
