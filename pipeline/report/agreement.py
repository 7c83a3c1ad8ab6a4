"""How verdicts and routes agree with people's labels: precision, recall and Cohen's kappa for the whole dataset.

The labelled sample is stratified (`label_sample`), so each stratum counts by its size in the dataset. Intervals: the share of
"yes" in each stratum has the posterior Beta(yes + 1/2, no + 1/2) (Jeffreys' prior); all figures are computed from 10,000 draws
of these shares, and the middle 95% of them is the interval, widened to hold the estimate. So it has a width even where all
labels of a stratum agree.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.report.label_sample import LabelItem
from pipeline.traces.families import FAMILIES
from schemas.errors import InputError
from schemas.labels import Agreement, Estimate, Label, LabelKind, Labels, LabelValue, Threshold
from schemas.os_errors import ABSENT, explained, number_of

_DRAWS: Final = 10_000
_INTERVAL: Final = (2.5, 97.5)
_DIGITS: Final = 4

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Judged:
    """An item with its label."""

    item: LabelItem
    value: LabelValue


@dataclass(frozen=True, slots=True)
class _Stratum:
    """rows of the dataset with this decision, and how often people said yes and no."""

    decision: bool
    rows: int
    yes: int
    no: int


def read_labels(path: Path) -> Labels:
    """Raises InputError for a file that is not there or holds no labels."""
    try:
        return Labels.model_validate_json(path.read_bytes())
    except OSError as error:
        cause, remedy = explained(error)
        absent = number_of(error) in ABSENT
        raise InputError(
            f"{path} cannot be read: {cause}", "name the file that the page of `label` saved" if absent else remedy
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(
            f"{path} holds no labels: {where}: {first['msg']}", "name the file that the page of `label` saved, unchanged"
        ) from error


def judged_items(items: Sequence[LabelItem], labels: Sequence[Label]) -> tuple[list[Judged], int]:
    """The items that were labelled, and how many labels fit none: of rows that are gone, or whose trace has changed since.

    Of several labels of one item the last counts.
    """
    known = {(item.kind, item.id, item.shown): item for item in items}
    last = {(label.kind, label.id, label.shown): label.value for label in labels}
    found = [Judged(known[key], value) for key, value in last.items() if key in known]
    return found, len(last) - len(found)


def agreements(items: Sequence[LabelItem], judged: Sequence[Judged], *, precision: float) -> list[Agreement]:
    """For verdicts, then for routes: all families together, then each. precision: wanted of the thresholds."""
    found = []
    for kind in LabelKind:
        for family in ("all", *FAMILIES):
            chosen = [item for item in items if item.kind is kind and family in ("all", item.family)]
            said = [one for one in judged if one.item.kind is kind and family in ("all", one.item.family)]
            if said:
                found.append(_agreement(kind, family, chosen, said, precision))
    return found


def _agreement(
    kind: LabelKind, family: str, items: Sequence[LabelItem], judged: Sequence[Judged], precision: float
) -> Agreement:
    sizes = Counter(item.stratum for item in items)
    answers: dict[Any, Counter[LabelValue]] = defaultdict(Counter)
    for one in judged:
        answers[one.item.stratum][one.value] += 1
    strata = {
        name: _Stratum(name[2], sizes[name], counts[LabelValue.YES], counts[LabelValue.NO])
        for name, counts in answers.items()
        if counts[LabelValue.YES] + counts[LabelValue.NO]
    }
    generator = np.random.default_rng(0)
    draws = [generator.beta(one.yes + 0.5, one.no + 0.5, _DRAWS) for _, one in sorted(strata.items())]
    ordered = [one for _, one in sorted(strata.items())]
    shares = [np.array([one.yes / (one.yes + one.no)]) for one in ordered]

    def estimate(figure: Callable[[Floats], Floats]) -> Estimate | None:
        if not ordered:
            return None
        value = float(figure(_table(ordered, shares))[0])
        if np.isnan(value):
            return None
        drawn = figure(_table(ordered, draws))
        low, high = np.percentile(drawn[~np.isnan(drawn)], _INTERVAL)
        low, high = min(float(low), value), max(float(high), value)  # where all labels agree the prior would leave it out
        return Estimate(value=round(value, _DIGITS), low=round(low, _DIGITS), high=round(high, _DIGITS))

    values = Counter(one.value for one in judged)
    return Agreement(
        kind=kind,
        family=family,
        labels=values[LabelValue.YES] + values[LabelValue.NO],
        unsure=values[LabelValue.UNSURE],
        rows=sum(one.rows for one in ordered),
        precision=estimate(_precision),
        recall=estimate(_recall),
        kappa=estimate(_kappa),
        threshold=_threshold(judged, strata, precision),
    )


def _table(strata: Sequence[_Stratum], shares: Sequence[Floats]) -> Floats:
    """Rows of the dataset by (decision, people's answer), (4, draws): accepted yes, accepted no, refused yes, refused no."""
    table = np.zeros((4, len(shares[0])))
    for one, share in zip(strata, shares, strict=True):
        at = 0 if one.decision else 2
        table[at] += one.rows * share
        table[at + 1] += one.rows * (1 - share)
    return table


def _precision(table: Floats) -> Floats:
    return _share(table[0], table[0] + table[1])


def _recall(table: Floats) -> Floats:
    return _share(table[0], table[0] + table[2])


def _kappa(table: Floats) -> Floats:
    """(observed - expected agreement) / (1 - expected)."""
    whole = table.sum(0)
    observed = (table[0] + table[3]) / whole
    accepted, right = (table[0] + table[1]) / whole, (table[0] + table[2]) / whole
    expected = accepted * right + (1 - accepted) * (1 - right)
    return _share(observed - expected, 1 - expected)


def _share(part: Floats, whole: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = np.where(whole > 0, part / whole, np.nan)
    return found


def _threshold(judged: Sequence[Judged], strata: Mapping[Any, _Stratum], wanted: float) -> Threshold | None:
    """The least confidence above which the labelled items, weighted by their strata, have the wanted precision.

    None where no threshold reaches it, or some have no confidence (rejections of datasets from before there was that column).
    """
    scored = []
    for one in judged:
        if one.item.confidence is None:
            return None
        if one.value is LabelValue.UNSURE:
            continue
        stratum = strata[one.item.stratum]
        scored.append((one.item.confidence, one.value is LabelValue.YES, stratum.rows / (stratum.yes + stratum.no)))
    if not scored:
        return None
    scored.sort(key=lambda row: -row[0])
    values = np.array([row[0] for row in scored])
    right = np.cumsum([row[2] * row[1] for row in scored])
    weight = np.cumsum([row[2] for row in scored])
    # a threshold lies between two confidences: equal ones are kept or refused together
    ends = np.flatnonzero(np.append(values[1:] < values[:-1], True))
    good = [int(end) for end in ends if right[end] / weight[end] >= wanted]
    if not good:
        return None
    end = good[-1]
    below = float(values[end + 1]) if end + 1 < len(values) else 0.0
    return Threshold(
        wanted=wanted,
        threshold=round(below, 6),
        precision=round(float(right[end] / weight[end]), _DIGITS),
        recall=round(float(right[end] / right[-1]), _DIGITS) if right[-1] else 0.0,
        labels=end + 1,
    )
