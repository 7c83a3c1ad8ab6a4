"""Screens: the paper's rule filters, each a named function from a trace to None (pass) or the reason against it.

The parser applies the format rule (`pipeline.traces.parser`), and near-duplicates are found in the whole dataset
(`pipeline.dataset.near_duplicates`). All other rules are here, in the order in which they are applied: `screen` returns the
first failure, `screen_results` the result of each rule.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from pipeline.annotate.word_lists import ENGLISH, FOREIGN, STOP_WORDS
from pipeline.traces.token_counts import CountTokens
from pipeline.traces.words import find_words, normalised
from schemas.config import ScreenConfig
from schemas.record import ScreenReason
from schemas.trace import Trace


class ScreenFailure(NamedTuple):
    reason: ScreenReason
    detail: str


@dataclass(frozen=True, slots=True)
class ScreenInput:
    """A trace, and what the rules compare it with.

    Args:
        query_text: the query's own text, if it has one.
        instruction: M-BEIR's instruction.
        target_text: the positive's text, if it has one.
        template_words: n-grams of the prompt template's own words (see `word_ngrams`).
        count: length of a text in the teacher's tokens.
    """

    trace: Trace
    query_text: str | None
    instruction: str
    target_text: str | None
    template_words: frozenset[str]
    count: CountTokens


Rule = Callable[[ScreenInput, ScreenConfig], ScreenFailure | None]

_REFUSAL: Final = re.compile(
    r"\bas an? (?:ai|artificial|language|large language|vision)\b|\bi(?:'m| am) (?:sorry|unable|not able|just an?)\b"
    r"|\bi (?:can(?:no|')t|could not|couldn't|do not|don't) (?:determine|identify|see|tell|help|assist|answer|provide|know)\b"
    r"|\b(?:unable|impossible|not possible) to (?:determine|identify|answer|tell)\b"
    r"|\bcannot be (?:determined|identified|answered)\b|\b(?:not enough|insufficient) information\b"
    r"|\bno image (?:was|is|has been) (?:provided|given|attached)\b|\bi apologi[sz]e\b"
    r"|\bhere is (?:the|your|my) (?:answer|reasoning)\b",
    re.IGNORECASE,
)


_REFUSAL_SIGNS: Final = (
    *(
        f"as {article} {what}"
        for article in ("a", "an")
        for what in ("ai", "artificial", "language", "large language", "vision")
    ),
    *("i'm ", "i am ", "i can", "i could", "i do", "able to ", "impossible to ", "not possible to ", "cannot be "),
    *(" information", "no image ", "i apologi", "here is "),
)
"""Every ASCII text that `_REFUSAL` matches contains one of these in lower case. Searching for them takes a tenth of the
time."""


@lru_cache(maxsize=4096)
def keywords(text: str) -> frozenset[str]:
    """The salient words: no stop words, plural and singular alike."""
    return frozenset(map(_stem, set(find_words(text)) - STOP_WORDS))


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    word = word.removesuffix("'s")
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def word_ngrams(text: str, size: int) -> frozenset[str]:
    words = find_words(text)
    return frozenset(" ".join(words[i : i + size]) for i in range(len(words) - size + 1))


def reasoning_length(given: ScreenInput, config: ScreenConfig) -> ScreenFailure | None:
    least, most = config.reasoning_tokens
    length = given.count(given.trace.reasoning)
    if length < least:
        return ScreenFailure(ScreenReason.REASONING_TOO_SHORT, f"{length} tokens of reasoning, at least {least} are wanted")
    if length > most:
        return ScreenFailure(ScreenReason.REASONING_TOO_LONG, f"{length} tokens of reasoning, at most {most} are wanted")
    return None


def answer_length(given: ScreenInput, config: ScreenConfig) -> ScreenFailure | None:
    least, most = config.answer_tokens
    length = given.count(given.trace.answer)
    if length < least:
        return ScreenFailure(ScreenReason.ANSWER_TOO_SHORT, f"{length} tokens of answer, at least {least} are wanted")
    if length > most:
        return ScreenFailure(ScreenReason.ANSWER_TOO_LONG, f"{length} tokens of answer, at most {most} are wanted")
    return None


def repeated_ngram(given: ScreenInput, config: ScreenConfig) -> ScreenFailure | None:
    for text in (given.trace.reasoning, given.trace.answer):
        words = find_words(text)
        if len(words) < config.ngram + config.ngram_times - 1 or len(words) - len(set(words)) < _least_repeated(config):
            continue
        grams = list(zip(*[words[i:] for i in range(config.ngram)], strict=False))
        if len(grams) - len(set(grams)) < config.ngram_times - 1:  # too few repetitions for any n-gram to fail
            continue
        gram, times = Counter(grams).most_common(1)[0]
        if times >= config.ngram_times:
            return ScreenFailure(ScreenReason.REPEATED_NGRAM, f"'{' '.join(gram)}' stands {times} times")
    return None


def _least_repeated(config: ScreenConfig) -> int:
    """Words that a text at least has beyond its different ones where an n-gram stands often enough.

    Two occurrences d words apart cover n + min(d, n) words, of which at most min(d, n) differ; each further one adds a word.
    """
    return config.ngram + config.ngram_times - 2 if config.ngram_times > 1 else 0


def english(given: ScreenInput, config: ScreenConfig) -> ScreenFailure | None:
    """Latin script; in longer texts, more English function words than those of any other listed language."""
    text = f"{given.trace.reasoning} {given.trace.answer}"
    if not text.isascii():
        letters = [c for c in text if c.isalpha()]
        foreign = sum(c > "\u024f" for c in letters)  # beyond Latin and its extensions
        if foreign > 0.1 * len(letters):
            return ScreenFailure(ScreenReason.NOT_ENGLISH, f"{foreign} of {len(letters)} letters are not Latin")
    reasoning, answer = find_words(given.trace.reasoning), find_words(given.trace.answer)
    if len(reasoning) + len(answer) < 20:
        return None
    words = [*reasoning, *answer]
    own = sum(map(ENGLISH.__contains__, words))
    if own < 0.15 * len(words):
        for language, markers in FOREIGN.items():
            hits = sum(word in markers and word not in ENGLISH for word in words)
            if hits > own and hits >= 0.1 * len(words):
                return ScreenFailure(ScreenReason.NOT_ENGLISH, f"reads as {language}")
    return None


def refusal(given: ScreenInput, config: ScreenConfig) -> ScreenFailure | None:
    text = f"{given.trace.reasoning} {given.trace.answer}"
    if text.isascii() and not any(map(text.lower().__contains__, _REFUSAL_SIGNS)):
        return None
    match = _REFUSAL.search(text)
    return ScreenFailure(ScreenReason.REFUSAL, f"'{match[0]}'") if match else None


def prompt_copied(given: ScreenInput, config: ScreenConfig) -> ScreenFailure | None:
    if not given.template_words or not _may_copy(given, config.copied_words):
        return None
    for text in (*(facet.text for facet in given.trace.facets), given.trace.answer):
        copied = word_ngrams(text, config.copied_words) & given.template_words
        if copied:
            return ScreenFailure(ScreenReason.PROMPT_COPIED, f"'{min(copied)}' is the prompt's own")
    return None


def _may_copy(given: ScreenInput, size: int) -> bool:
    """False if neither reasoning nor answer has a run of `size` words that all occur in the template."""
    known = _vocabulary(given.template_words)
    for text in (given.trace.reasoning, given.trace.answer):
        words, run = find_words(text), 0
        if sum(map(known.__contains__, words)) < size:
            continue
        for word in words:
            run = run + 1 if word in known else 0
            if run >= size:
                return True
    return False


@lru_cache(maxsize=64)
def _vocabulary(ngrams: frozenset[str]) -> frozenset[str]:
    return frozenset(word for ngram in ngrams for word in ngram.split(" "))


def shared_keyword(given: ScreenInput, config: ScreenConfig) -> ScreenFailure | None:
    """The answer must have a salient word of the query's text, the instruction or the target's text.

    If neither query nor target has words (image to image), the rule passes. A composed query also depends on its reference
    image ("is not short" of a purple shirt), so the source facet counts as part of the query's text.
    """
    source = next((facet.text for facet in given.trace.facets if facet.name == "source"), "")
    of_query, of_answer = keywords(f"{given.query_text or ''} {source}"), keywords(given.trace.answer)
    if of_answer & of_query:
        return None
    of_target = keywords(given.target_text or "")
    if not of_query and not of_target:
        return None
    if of_answer & of_target or of_answer & keywords(given.instruction):
        return None
    return ScreenFailure(ScreenReason.NO_SHARED_KEYWORD, "the answer has no salient word of the query or of what is sought")


def answer_is_source(given: ScreenInput, config: ScreenConfig) -> ScreenFailure | None:
    """Composed retrieval: the answer must differ from the source facet, which describes the reference image."""
    source = next((facet.text for facet in given.trace.facets if facet.name == "source"), None)
    if source is not None and normalised(source) == normalised(given.trace.answer):
        return ScreenFailure(ScreenReason.ANSWER_IS_SOURCE, "the answer describes the source; nothing was changed")
    return None


RULES: Final[dict[str, Rule]] = {
    "reasoning length": reasoning_length,
    "answer length": answer_length,
    "refusal": refusal,
    "English": english,
    "repeated n-gram": repeated_ngram,
    "prompt copied": prompt_copied,
    "shared keyword": shared_keyword,
    "answer is not the source": answer_is_source,
}


def screen(given: ScreenInput, config: ScreenConfig) -> ScreenFailure | None:
    """The first failure, or None if all rules pass."""
    for rule in RULES.values():
        failure = rule(given, config)
        if failure is not None:
            return failure
    return None


def screen_results(given: ScreenInput, config: ScreenConfig) -> dict[str, ScreenFailure | None]:
    """The result of each rule, for display."""
    return {name: rule(given, config) for name, rule in RULES.items()}
