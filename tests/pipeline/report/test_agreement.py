"""Figures of agreement on hand-made samples whose answers are known."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.report.agreement import Judged, agreements, judged_items, read_labels
from pipeline.report.label_sample import LabelItem, draw_items
from schemas.errors import InputError
from schemas.labels import Agreement, Label, LabelKind, LabelValue

YES, NO, UNSURE = LabelValue.YES, LabelValue.NO, LabelValue.UNSURE
DIGEST = "0" * 16


def items(counts: dict[tuple[str, bool], int], kind: LabelKind = LabelKind.VERDICT) -> list[LabelItem]:
    """(family, decision) -> rows. Confidences rise with the number: rejected from 0.0, accepted from 0.7."""
    return [
        LabelItem(
            kind,
            f"{family}/{decision}/{n}",
            family,
            decision,
            round((0.7 if decision else 0.0) + 0.2 * (n + 1) / count, 6),
            DIGEST,
        )
        for (family, decision), count in counts.items()
        for n in range(count)
    ]


def said(chosen: list[LabelItem], answers: dict[tuple[str, bool], str]) -> list[Judged]:
    """The first items of each stratum with these answers, a letter each: y, n or u."""
    letters = {"y": YES, "n": NO, "u": UNSURE}
    found = []
    for (family, decision), text in answers.items():
        of_stratum = [item for item in chosen if (item.family, item.decision) == (family, decision)]
        found += [Judged(item, letters[letter]) for item, letter in zip(of_stratum, text, strict=False)]
    return found


def only(found: list[Agreement], family: str) -> Agreement:
    return next(one for one in found if one.family == family)


def test_strata_count_by_their_size_in_the_dataset() -> None:
    chosen = items({("visual", True): 900, ("visual", False): 100})
    answers = {("visual", True): "y" * 9 + "n", ("visual", False): "y" * 2 + "n" * 8}
    found = only(agreements(chosen, said(chosen, answers), precision=0.95), "visual")
    assert found.precision is not None
    assert found.recall is not None
    assert found.kappa is not None
    assert found.precision.value == 0.9
    assert found.recall.value == pytest.approx(810 / 830, abs=1e-4)
    observed, expected = 0.89, 0.9 * 0.83 + 0.1 * 0.17
    assert found.kappa.value == pytest.approx((observed - expected) / (1 - expected), abs=1e-4)
    for one in (found.precision, found.recall, found.kappa):
        assert one.low < one.value < one.high
    assert (found.labels, found.rows) == (20, 1000)


def test_an_interval_has_a_width_where_all_labels_agree_and_shrinks_with_more() -> None:
    chosen = items({("text", True): 500})
    few, many = (
        only(agreements(chosen, said(chosen, {("text", True): "y" * n}), precision=0.9), "text").precision for n in (10, 200)
    )
    assert few is not None
    assert many is not None
    assert few.value == many.value == 1.0
    assert few.low < many.low < 1.0
    assert few.high == many.high == 1.0


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(4)
    inside, rounds = 0, 120
    chosen = items({("visual", True): 400, ("visual", False): 200, ("text", True): 100, ("text", False): 300})
    shares = {("visual", True): 0.95, ("visual", False): 0.2, ("text", True): 0.8, ("text", False): 0.1}
    sizes = {stratum: sum((i.family, i.decision) == stratum for i in chosen) for stratum in shares}
    truth = sum(sizes[s] * shares[s] for s in shares if s[1]) / sum(sizes[s] * shares[s] for s in shares)
    for _ in range(rounds):
        answers = {s: "".join("y" if generator.random() < share else "n" for _ in range(25)) for s, share in shares.items()}
        recall = only(agreements(chosen, said(chosen, answers), precision=0.9), "all").recall
        assert recall is not None
        inside += recall.low <= truth <= recall.high
    assert inside / rounds > 0.88


def test_unsure_labels_are_told_but_not_counted() -> None:
    chosen = items({("visual", True): 50, ("visual", False): 50})
    answers = {("visual", True): "yyyu", ("visual", False): "uuu"}
    found = only(agreements(chosen, said(chosen, answers), precision=0.9), "visual")
    assert (found.labels, found.unsure, found.rows) == (3, 4, 50)
    assert found.precision is not None
    assert found.precision.value == 1.0


def test_the_threshold_is_the_least_that_gives_the_precision() -> None:
    chosen = items({("visual", True): 10, ("visual", False): 10})
    answers = {("visual", False): "nnnnnyyyyy", ("visual", True): "nyyyyyyyyy"}
    judged = said(chosen, answers)
    by_confidence = sorted(judged, key=lambda one: one.item.confidence or 0.0)
    for wanted in (0.5, 0.9, 0.95, 1.0):
        found = only(agreements(chosen, judged, precision=wanted), "visual").threshold
        assert found is not None
        above = [one for one in by_confidence if (one.item.confidence or 0.0) > found.threshold]
        assert sum(one.value is YES for one in above) / len(above) == pytest.approx(found.precision, abs=1e-4)
        assert found.precision >= wanted
        assert found.labels == len(above)
        for more in range(len(above) + 1, len(judged) + 1):
            assert sum(one.value is YES for one in by_confidence[-more:]) / more < wanted
    none = said(chosen, {("visual", True): "n" * 10})
    assert only(agreements(chosen, none, precision=0.9), "visual").threshold is None


def test_labels_of_what_has_changed_are_not_counted_and_the_last_of_two_is() -> None:
    chosen = items({("visual", True): 3})
    labels = [
        Label(kind=LabelKind.VERDICT, id=chosen[0].id, shown=DIGEST, value=YES),
        Label(kind=LabelKind.VERDICT, id=chosen[0].id, shown=DIGEST, value=NO),
        Label(kind=LabelKind.VERDICT, id=chosen[1].id, shown="1" * 16, value=YES),
        Label(kind=LabelKind.ROUTE, id=chosen[2].id, shown=DIGEST, value=YES),
    ]
    judged, strange = judged_items(chosen, labels)
    assert [(one.item.id, one.value) for one in judged] == [(chosen[0].id, NO)]
    assert strange == 2


def test_a_sample_is_even_over_the_strata_and_in_an_order_that_tells_nothing() -> None:
    counts = {(family, decision): 400 if decision else 30 for family in ("visual", "text") for decision in (True, False)}
    everything = items(counts) + items(counts, LabelKind.ROUTE)
    drawn = draw_items(everything, 80, seed=3)
    assert drawn == draw_items(everything, 80, seed=3) != draw_items(everything, 80, seed=4)
    assert [item.kind for item in drawn] == [LabelKind.VERDICT] * 40 + [LabelKind.ROUTE] * 40
    strata = [item.stratum for item in drawn]
    assert {strata.count(stratum) for stratum in set(strata)} == {10}
    longest = max(len(list(group)) for _, group in itertools.groupby(item.decision for item in drawn))
    assert longest < 15
    assert len(draw_items(items(counts), 80, seed=0)) == 80  # no routes: verdicts take their place
    assert len(draw_items(everything, 10_000, seed=0)) == len(everything)


@pytest.mark.parametrize("text", ["", "[]", '{"version": 2}', '{"labels": 3}', "\x00"])
def test_a_file_that_holds_no_labels_is_an_error_with_its_place(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(InputError, match=r"labels\.json holds no labels"):
        read_labels(tmp_path / "labels.json")
    with pytest.raises(InputError, match="cannot be read") as caught:
        read_labels(tmp_path / "absent.json")
    assert "the page of `label` saved" in caught.value.remedy


def test_without_the_refused_traces_confidences_there_is_no_threshold() -> None:
    """Rejections of earlier datasets have none: a threshold below today's could not be judged."""
    chosen = items({("visual", True): 10, ("visual", False): 10})
    judged = said(chosen, {("visual", True): "y" * 5, ("visual", False): "n" * 5})
    assert only(agreements(chosen, judged, precision=0.9), "visual").threshold is not None
    old = [Judged(replace(one.item, confidence=None) if not one.item.decision else one.item, one.value) for one in judged]
    assert only(agreements(chosen, old, precision=0.9), "visual").threshold is None
