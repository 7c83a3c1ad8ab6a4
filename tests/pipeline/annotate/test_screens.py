from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.annotate.screens import (
    _REFUSAL,
    RULES,
    ScreenInput,
    keywords,
    refusal,
    repeated_ngram,
    screen,
    screen_results,
    shared_keyword,
    word_ngrams,
)
from pipeline.traces.families import COMPOSED, FAMILIES
from prompts import BUILT_IN, PromptSet
from schemas.config import ScreenConfig
from schemas.record import REASONS, ImageReason, ScreenReason
from schemas.trace import FacetText, Trace

CONFIG = ScreenConfig()
GOOD = (
    "one beagle lying on green grass, seen from the side",
    "add a second beagle, so that there are two; replace the grass by sand",
    "the breed, the lying pose, an outdoor view by day",
)


def screened(*facets: str, answer: str = "two beagles lying on sand outdoors", **changes: Any) -> ScreenInput:
    names = [(facet.name, facet.label) for facet in COMPOSED.facets]
    texts = facets or GOOD
    trace = Trace(
        family="composed",
        facets=tuple(FacetText(name=n, label=label, text=text) for (n, label), text in zip(names, texts, strict=True)),
        answer=answer,
    )
    usual = {
        "query_text": "one more beagle, and on sand",
        "instruction": "Find the changed image.",
        "target_text": None,
        "template_words": frozenset(),
        "count": lambda text: len(text.split()),
    }
    return ScreenInput(trace=trace, **(usual | changes))


def reason(given: ScreenInput, config: ScreenConfig = CONFIG) -> str | None:
    fault = screen(given, config)
    return fault.reason if fault else None


def test_a_good_trace_passes_every_rule() -> None:
    assert set(screen_results(screened(), CONFIG).values()) == {None}
    assert list(screen_results(screened(), CONFIG)) == list(RULES)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (screened("a dog", "add one", "pose"), ScreenReason.REASONING_TOO_SHORT),
        (screened(" ".join(f"w{i}" for i in range(260)), "b", "c"), ScreenReason.REASONING_TOO_LONG),
        (screened(answer="beagles"), ScreenReason.ANSWER_TOO_SHORT),
        (screened(answer="beagles " + " ".join(f"w{i}" for i in range(70))), ScreenReason.ANSWER_TOO_LONG),
        (screened(GOOD[0], "I cannot determine what is asked here, as an AI model", GOOD[2]), ScreenReason.REFUSAL),
        (screened(answer="Sorry, I can't identify the beagle"), ScreenReason.REFUSAL),
        (
            screened("一只狗躺在绿色的草地上", "再加一只狗并且把草换成沙子 one two three four", "a b c d e f g h i j k l"),
            ScreenReason.NOT_ENGLISH,
        ),
        (
            screened(
                "un chien est couché dans les herbes avec une balle",
                "ajouter un chien et remplacer les herbes par des sables sur la plage",
                "la race et la pose sont les mêmes pour le chien",
            ),
            ScreenReason.NOT_ENGLISH,
        ),
        (screened("a dog on the green grass by day; " * 3 + "and so on", GOOD[1], GOOD[2]), ScreenReason.REPEATED_NGRAM),
        (screened(answer="a quiet street at night"), ScreenReason.NO_SHARED_KEYWORD),
        (screened(answer="One beagle, lying on green grass (seen from the side)"), ScreenReason.ANSWER_IS_SOURCE),
    ],
)
def test_each_rule_gives_its_reason(given: ScreenInput, expected: ScreenReason) -> None:
    assert reason(given) == expected


def test_bounds_are_inclusive_and_configured() -> None:
    length = len(screened().trace.reasoning.split())
    exact = ScreenConfig(reasoning_tokens=(length, length), answer_tokens=(6, 6))
    assert reason(screened(), exact) is None
    assert reason(screened(), ScreenConfig(reasoning_tokens=(length + 1, 999))) == ScreenReason.REASONING_TOO_SHORT
    assert reason(screened(), ScreenConfig(answer_tokens=(2, 5))) == ScreenReason.ANSWER_TOO_LONG


def test_keywords_may_come_from_target_or_instruction_and_plurals_match() -> None:
    assert reason(screened(answer="a quiet street at night", target_text="The streets of Rome")) is None
    assert reason(screened(answer="a changed street at night")) is None  # from the instruction
    assert keywords("two cities, the dogs' puppies") == {"two", "city", "dog", "puppy"}
    assert "image" not in keywords("Find an image of a dress")


def test_without_words_in_query_and_target_no_keyword_is_required() -> None:
    details = FacetText(
        name="details", label="Details", text="a lamp, two parked cars and wet stones between rows of old houses"
    )
    trace = Trace(family="visual", facets=(details,), answer="a quiet street at night")
    given = replace(screened(query_text=None, target_text=None), trace=trace)
    assert shared_keyword(given, CONFIG) is None
    assert shared_keyword(replace(given, target_text="a dog"), CONFIG) is not None


def test_a_composed_query_needs_no_shared_keyword() -> None:
    given = screened(
        "short purple shirt", "it becomes long", "purple, shirt", answer="long purple shirt", query_text="is not short"
    )
    assert shared_keyword(given, CONFIG) is None


def test_text_of_the_template_may_not_be_copied() -> None:
    prompts = PromptSet.load("full")
    own = word_ngrams(prompts.own_text("reason_composed"), CONFIG.copied_words)
    copied = "what stays as it is, as far as the text does not say otherwise"
    assert reason(screened(GOOD[0], GOOD[1], copied, template_words=own)) == ScreenReason.PROMPT_COPIED
    fresh = (
        "a brown dog on a lawn, alone and lying",
        "put a second dog there and a beach under both",
        "the breed and the light of day",
    )
    assert reason(screened(*fresh, answer="two brown dogs on a sand beach", template_words=own)) is None


def test_every_image_problem_is_a_rejection_reason() -> None:
    assert {str(reason) for reason in ImageReason} <= REASONS


@pytest.mark.parametrize("which", BUILT_IN)
def test_own_text_contains_no_markup(which: str) -> None:
    prompts = PromptSet.load(which)
    for family in FAMILIES:
        text = prompts.own_text(f"reason_{family}")
        assert text.strip()
        assert "{" not in text
        assert "}" not in text


@given(st.lists(st.text(alphabet="abc defg.,", min_size=1, max_size=60).map(str.strip).filter(bool), min_size=3, max_size=3))
def test_screens_never_raise(texts: list[str]) -> None:
    fault = screen(screened(*texts), CONFIG)
    assert fault is None or fault.detail


@settings(max_examples=30)
@given(st.from_regex(_REFUSAL, alphabet=st.characters(max_codepoint=127)))
def test_the_prefilter_for_refusals_misses_none(text: str) -> None:
    """The expression is only applied to texts that contain one of a few words."""
    answer = " ".join(text.replace("<", " ").replace(">", " ").split()) or "."
    found = _REFUSAL.search(f"{screened().trace.reasoning} {answer}")
    assume(found is not None)
    failure = refusal(screened(answer=answer), CONFIG)
    assert failure is not None
    assert found is not None
    assert failure.detail == f"'{found[0]}'"


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=24), st.integers(1, 4), st.integers(2, 4))
def test_repeated_ngrams_agree_with_plain_counting(words: list[str], size: int, times: int) -> None:
    config = CONFIG.model_copy(update={"ngram": size, "ngram_times": times})
    counts = Counter(zip(*(words[i:] for i in range(size)), strict=False))
    fault = repeated_ngram(screened(answer=" ".join(words)), config)
    most = max(counts.values(), default=0)
    own = repeated_ngram(screened(answer="beagle"), config)  # repetitions in the reasoning only
    assert fault == own if own is not None else (fault is not None) == (most >= times)


SAID = st.lists(
    st.sampled_from(["the", "a", "beagle", "beagles", "on", "sand,", "Grass.", "grass's", "it's", "now", "no-one"]),
    min_size=1,
    max_size=14,
)


@given(SAID, SAID, SAID, st.integers(1, 4), st.booleans())
def test_the_fast_rules_agree_with_their_definitions(
    facet: list[str], answer: list[str], other: list[str], size: int, has_target: bool
) -> None:
    """Compares copied prompt text and shared keywords with their plain definitions."""
    one, said, text = (" ".join(words).strip(".,") for words in (facet, answer, other))
    assume(all((one, said, text)))
    given = screened(
        one, *GOOD[1:], answer=said, query_text=text, target_text=one if has_target else None,
        template_words=word_ngrams(text, size),
    )  # fmt: skip
    copied = [word_ngrams(part, size) & given.template_words for part in (one, *GOOD[1:], said)]
    fault = RULES["prompt copied"](given, CONFIG.model_copy(update={"copied_words": size}))
    assert (fault is not None) == any(copied)
    of_query, of_target = keywords(f"{text} {one}"), keywords(given.target_text or "")
    shared = keywords(said) & (of_query | of_target | keywords(given.instruction))
    assert (shared_keyword(given, CONFIG) is None) == bool(shared or not (of_query or of_target))
