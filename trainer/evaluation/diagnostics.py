"""Explains a table by means that need no truth: on real data as on the pocket world's.

Queries that could not be read have no route and are in no group.

by difficulty   hit rates and think rates by the teacher's P(complex) for the same queries
by agreement    hit rates of the queries that reasoned, by how far their trace's answer agrees with the teacher's
by confidence   hit rates of the queries that reasoned, by the mean log-probability of their traces; beside them those of
                their bypass embeddings, if the swap test was run: where these are better, `adaptive.fallback` gains
swap test       the same weights and queries after other traces: none, another query's of the same task, their own words in
                random order. What the own trace is worth is what hit rates lose without it; a model that does not read its
                trace loses nothing.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipeline.traces.families import family_of
from schemas.mbeir import DatasetTask
from schemas.record import task_of_record
from trainer.data.batch_sampler import rng_for
from trainer.evaluation.hit_rates import headline_k
from trainer.evaluation.run_files import Ranked

BANDS: Final = ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.0))
"""Of P(complex); the last holds 1."""
QUARTERS: Final = 4
SIMILAR: Final = 0.5
"""F1 over words from which two answers count as similar."""


class Group(BaseModel):
    """Hit rates at the headline k over some queries, a mean over queries. `union`: None where it was not searched."""

    model_config = ConfigDict(frozen=True)

    name: str
    queries: int
    think_rate: float
    local: float
    union: float | None
    direct_local: float | None = None
    direct_union: float | None = None
    """The same queries by the run's `direct` variant, where it was evaluated."""
    bypass_local: float | None = None
    bypass_union: float | None = None
    """The same queries and weights, without a trace."""


class Swap(BaseModel):
    """The queries that reasoned, embedded after another trace than their own."""

    model_config = ConfigDict(frozen=True)

    trace: str
    """Whose trace: ``own``, ``none``, ``another query's`` or ``shuffled words``."""
    queries: int
    cosine: float
    """Mean cosine to the embedding after the own trace."""
    local: float
    union: float | None
    first_changed: float
    """Share of the queries whose first result in the local pool is another one."""


class Diagnostics(BaseModel):
    """What `evaluate_run` writes to ``diagnostics_{split}.json``. Lists are empty if nothing is known."""

    model_config = ConfigDict(frozen=True)

    by_difficulty: tuple[Group, ...] = ()
    by_agreement: tuple[Group, ...] = ()
    by_confidence: tuple[Group, ...] = ()
    swap_test: tuple[Swap, ...] = ()


Ranks = Mapping[str, Ranked]
"""Record id -> the ranks of the query in a pool."""


class PoolRanks(BaseModel):
    """The ranks of one way of embedding, from its run files."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    local: Ranks
    union: Ranks | None = None


def group_by_difficulty(
    reasoned: Mapping[str, bool], complexity: Mapping[str, float], own: PoolRanks, direct: PoolRanks | None = None
) -> tuple[Group, ...]:
    """reasoned: record id -> the student's route. complexity: record id -> the teacher's P(complex); others are left out."""
    groups: dict[str, list[str]] = defaultdict(list)
    for identifier in reasoned:
        if (p := complexity.get(identifier)) is not None:
            low, high = BANDS[min(int(p * len(BANDS)), len(BANDS) - 1)]
            groups[f"P(complex) {low:.1f} to {high:.1f}"].append(identifier)
    return tuple(make_group(name, groups[name], reasoned, own, direct) for name in sorted(groups))


def group_by_agreement(
    traces: Mapping[str, str], answers: Mapping[str, str], own: PoolRanks, direct: PoolRanks | None = None
) -> tuple[Group, ...]:
    """traces: record id -> the student's trace, of queries that reasoned. answers: record id -> the teacher's answer."""
    groups: dict[str, list[str]] = {name: [] for name in ("same answer", "similar answer", "another answer")}
    for identifier, trace in traces.items():
        if (answer := answers.get(identifier)) is not None:
            groups[_agreement(answer_of(trace), answer)].append(identifier)
    reasoned = dict.fromkeys(traces, True)
    return tuple(make_group(name, ids, reasoned, own, direct) for name, ids in groups.items() if ids)


def group_by_confidence(
    confidence: Mapping[str, float], own: PoolRanks, direct: PoolRanks | None = None, *, bypass: PoolRanks | None = None
) -> tuple[Group, ...]:
    """Four groups of equal size, least confident first. confidence: record id -> that of its trace, of queries that reasoned.

    bypass: ranks of the bypass embeddings.
    """
    ids = sorted(confidence, key=lambda identifier: (confidence[identifier], identifier))
    quarters = [part.tolist() for part in np.array_split(np.array(ids), QUARTERS) if len(part)]
    reasoned = dict.fromkeys(ids, True)
    return tuple(
        make_group(
            f"confidence {confidence[part[0]]:.3f} to {confidence[part[-1]]:.3f}", part, reasoned, own, direct, bypass=bypass
        )
        for part in quarters
    )


def compare_swap(
    trace: str,
    vectors: Mapping[str, NDArray[np.floating]],
    others: Mapping[str, NDArray[np.floating]],
    own: PoolRanks,
    other: PoolRanks,
) -> Swap:
    """vectors: record id -> embedding (dim,) after the own trace; others: after the other. Their common ids are compared."""
    ids = [identifier for identifier in others if identifier in vectors]
    cosines = [_cosine(vectors[identifier], others[identifier]) for identifier in ids]
    changed = [own.local[i].first != other.local[i].first for i in ids if i in own.local and i in other.local]
    return Swap(
        trace=trace,
        queries=len(ids),
        cosine=_mean(cosines),
        local=hit_rate(ids, other.local),
        union=hit_rate(ids, other.union) if other.union is not None else None,
        first_changed=_mean(changed),
    )


def exchange_traces(traces: Mapping[str, str], seed: int) -> dict[str, str]:
    """Record id -> the trace of another query of the same dataset-task. Queries whose task has no other trace are left out."""
    by_task: dict[DatasetTask, list[str]] = defaultdict(list)
    for identifier in sorted(traces):
        by_task[task_of_record(identifier)].append(identifier)
    exchanged: dict[str, str] = {}
    for task, ids in by_task.items():
        order = rng_for("swap", seed, task.name).permutation(len(ids))
        shuffled = [ids[i] for i in order]
        for identifier, next_one in zip(shuffled, [*shuffled[1:], *shuffled[:1]], strict=True):
            if traces[next_one] != traces[identifier]:
                exchanged[identifier] = traces[next_one]
    return exchanged


def shuffle_words(traces: Mapping[str, str], seed: int) -> dict[str, str]:
    """Record id -> its trace with all its words in random order, facets and answer together. Labels and lines stay in place."""
    shuffled = {}
    for identifier, trace in traces.items():
        labels = {f"{facet.label}:" for facet in family_of(task_of_record(identifier).task_id).facets}
        parts = re.split(r"(\s+)", trace)  # blanks stay where they are, too
        places = [i for i, part in enumerate(parts) if part.strip() and part not in labels]
        order = rng_for("shuffle", seed, identifier).permutation(len(places))
        words = [parts[places[i]] for i in order]
        for place, word in zip(places, words, strict=True):
            parts[place] = word
        shuffled[identifier] = "".join(parts)
    return shuffled


def answer_of(trace: str) -> str:
    """The last line of a trace."""
    return trace.strip().splitlines()[-1] if trace.strip() else ""


def hit_rate(ids: Iterable[str], ranks: Ranks) -> float:
    """Share of the queries whose positive is within the headline k of their task."""
    hits = []
    for identifier in ids:
        ranked = ranks.get(identifier)
        hits.append(ranked is not None and ranked.rank is not None and ranked.rank <= headline_k(task_of_record(identifier)))
    return _mean(hits)


def make_group(
    name: str,
    ids: Sequence[str],
    reasoned: Mapping[str, bool],
    own: PoolRanks,
    direct: PoolRanks | None,
    *,
    bypass: PoolRanks | None = None,
) -> Group:
    """reasoned: record id -> its route. own, direct, bypass: the ranks that are compared."""

    def rate(embedding: PoolRanks | None, pool: Callable[[PoolRanks], Ranks | None]) -> float | None:
        ranks = pool(embedding) if embedding is not None else None
        return hit_rate(ids, ranks) if ranks is not None else None

    return Group(
        name=name,
        queries=len(ids),
        think_rate=_mean([reasoned[identifier] for identifier in ids]),
        local=hit_rate(ids, own.local),
        union=rate(own, lambda ranks: ranks.union),
        direct_local=rate(direct, lambda ranks: ranks.local),
        direct_union=rate(direct, lambda ranks: ranks.union),
        bypass_local=rate(bypass, lambda ranks: ranks.local),
        bypass_union=rate(bypass, lambda ranks: ranks.union),
    )


def _agreement(answer: str, teacher: str) -> str:
    ours, theirs = answer.lower().split(), teacher.lower().split()
    if ours == theirs:
        return "same answer"
    common = sum((Counter(ours) & Counter(theirs)).values())
    return "similar answer" if 2 * common >= SIMILAR * (len(ours) + len(theirs)) else "another answer"


def _cosine(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float(one @ other / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-12))


def _mean(values: Sequence[float | bool]) -> float:
    return float(np.mean(values)) if values else float("nan")
