"""Which words of an answer are wrong."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocket.curriculum.query_mix import sample_known
from pocket.curriculum.teacher_tasks import verify_lesson
from pocket.curriculum.verification import judge, matching_lesson, swap_words, wrong_answer

SEEDS = st.integers(0, 10_000)


@pytest.mark.parametrize(
    ("answer", "truth", "words", "complete"),
    [
        ("red circle, night", "red circle, night", [True, True, True], True),
        ("blue circle, night", "red circle, night", [False, True, True], True),
        ("red circle", "red circle, night", [True, True], False),  # something is missing at the end
        ("red circle, night", "red circle, blue star, night", [True, True, False], True),  # or before the last word
        ("red circle, blue star, night", "red circle, night", [True, True, False, False, True], True),
        ("nothing", "red circle", [False], True),
    ],
)
def test_a_word_is_right_if_it_belongs_to_the_right_answer(answer: str, truth: str, words: list[bool], complete: bool) -> None:
    judged = judge(answer, truth)
    assert [right for _, right in judged.words] == words
    assert [answer[:end].rsplit(maxsplit=1)[-1].strip(",") for end, _ in judged.words] == answer.replace(",", "").split()
    assert judged.complete is complete
    assert judged.right == (answer == truth)


@given(SEEDS)
def test_a_wrong_answer_has_the_form_of_a_right_one(seed: int) -> None:
    rng = random.Random(seed)
    right = sample_known(rng).answer
    wrong = wrong_answer(right, rng, easy=seed % 2 == 0)
    assert wrong != right
    assert swap_words(right, rng, 0.0) == right
    if wrong != "nothing":
        assert len(wrong.split()) == len(right.split())


@given(SEEDS)
def test_the_reply_agrees_with_the_judged_words(seed: int) -> None:
    rng = random.Random(seed)
    lesson = verify_lesson(sample_known(rng), rng, near=0.5) if seed % 2 else matching_lesson(rng)
    assert lesson.judged is not None
    assert lesson.parts[-1].endswith(f"Answer: {lesson.judged.answer}")  # type: ignore[union-attr]
    assert (lesson.reply == "yes") == lesson.judged.right == (lesson.judged.answer == lesson.judged.truth)
