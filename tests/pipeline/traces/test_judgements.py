from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.traces.judgements import (
    ASSESS,
    VERIFY,
    Labels,
    choice_fields,
    judgement_from_logprobs,
    judgement_from_statement,
    require_distinct_labels,
)
from schemas.errors import ConfigError
from schemas.judgement import Judgement, JudgementReason, JudgementSource, NoJudgement

logprobs = st.floats(-200, 0)


def probability(judgement: Judgement | NoJudgement) -> float:
    assert isinstance(judgement, Judgement), judgement
    return judgement.probability


@given(logprobs, logprobs)
def test_the_probability_is_the_share_of_the_two_labels(yes: float, no: float) -> None:
    judged = judgement_from_logprobs({"yes": yes, "no": no, "maybe": -1.0}, VERIFY)
    assert judged == Judgement(probability=probability(judged), source=JudgementSource.LOGPROBS)
    # computed directly, if that does not underflow
    if max(yes, no) > -600:
        top = max(yes, no)
        direct = math.exp(yes - top) / (math.exp(yes - top) + math.exp(no - top))
        assert probability(judged) == pytest.approx(direct, abs=1e-12)
    mirrored = judgement_from_logprobs({"yes": yes, "no": no}, Labels("no", "yes"))
    assert probability(judged) + probability(mirrored) == pytest.approx(1.0)


def test_variants_of_a_label_count_together() -> None:
    judged = judgement_from_logprobs({" Yes": math.log(0.3), "yes": math.log(0.3), "No": math.log(0.2)}, VERIFY)
    assert probability(judged) == pytest.approx(0.75)


def test_the_first_token_of_a_label_counts() -> None:
    judged = judgement_from_logprobs({"comp": math.log(0.6), "s": math.log(0.2), "sim": math.log(0.2)}, ASSESS)
    assert probability(judged) == pytest.approx(0.6)


def test_a_token_that_begins_both_labels_counts_for_neither() -> None:
    judged = judgement_from_logprobs({"a": -0.1, "ab": math.log(0.5), "ac": math.log(0.5)}, Labels("abc", "acd"))
    assert probability(judged) == pytest.approx(0.5)


def test_a_missing_label_gets_a_marked_bound() -> None:
    judged = judgement_from_logprobs({"yes": -0.2, "x": -5.0}, VERIFY)  # the other label has at most as much as x
    assert isinstance(judged, Judgement)
    assert judged.source is JudgementSource.BOUNDED
    assert probability(judged) == pytest.approx(1 / (1 + math.exp(-5.0 + 0.2)))


@pytest.mark.parametrize(("said", "share"), [("simple", 0.1), ("complex", 0.9)])
def test_a_token_that_is_listed_alone_leaves_the_rest_to_the_other_label(said: str, share: float) -> None:
    judged = judgement_from_logprobs({said: math.log(0.9)}, ASSESS)
    assert isinstance(judged, Judgement)
    assert judged.source is JudgementSource.BOUNDED
    assert judged.probability == pytest.approx(share)
    certain = judgement_from_logprobs({said: 0.0}, ASSESS)
    assert probability(certain) == pytest.approx(float(said == "complex"), abs=1e-9)


def test_a_missing_judgement_says_why() -> None:
    nothing = judgement_from_logprobs({}, VERIFY)
    strange = judgement_from_logprobs({"perhaps": -0.1}, VERIFY)
    assert isinstance(nothing, NoJudgement)
    assert nothing.reason is JudgementReason.NO_LOGPROBS
    assert isinstance(strange, NoJudgement)
    assert strange.reason is JudgementReason.NO_LABEL
    assert "'perhaps'" in strange.detail


def test_impossible_labels_are_no_error() -> None:
    assert probability(judgement_from_logprobs({"yes": -math.inf, "no": -math.inf}, VERIFY)) == 0.5
    assert probability(judgement_from_logprobs({"yes": -math.inf, "no": -1.0}, VERIFY)) == 0.0


@pytest.mark.parametrize(
    ("output", "value"),
    [("confidence: 0.85", 0.85), ("I say 1", 1.0), ("80 %", 0.8), ("between 0.2 and .7", 0.7), ("0", 0.0), ("250%", 1.0)],
)
def test_stated_confidences_are_read(output: str, value: float) -> None:
    assert judgement_from_statement(output) == Judgement(probability=value, source=JudgementSource.STATED)


@pytest.mark.parametrize("output", ["", "yes", "confidence: 7.5", "2026"])
def test_an_output_without_a_confidence_gives_none(output: str) -> None:
    judged = judgement_from_statement(output)
    assert isinstance(judged, NoJudgement)
    assert judged.reason is JudgementReason.NO_NUMBER


def test_the_request_restricts_the_answer_to_the_labels() -> None:
    fields = choice_fields(VERIFY)
    assert fields["structured_outputs"] == {"choice": ["yes", "no"]}
    assert fields["logprobs"] is True


class _Characters:
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) for c in text]


def test_labels_must_differ_in_their_first_token() -> None:
    require_distinct_labels(_Characters(), VERIFY)
    with pytest.raises(ConfigError, match="same token"):
        require_distinct_labels(_Characters(), Labels("yes", "yeah"))
