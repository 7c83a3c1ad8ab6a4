"""Answers to be judged: which phrases are marked wrong, and what the model is asked at which token."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocket.fit import IGNORE, JUDGEMENT, MARK, collate
from pocket.lessons.judging import judge, matching_lesson, phrases, spoil, spoilt
from pocket.lessons.queries import sample_known
from pocket.lessons.teacher import verify_lesson
from pocket.measure import Checkpoint
from pocket.models import MODELS

SEEDS = st.integers(0, 10_000)


def test_phrases_lie_between_commas_and_colons() -> None:
    answer = "Corwick: small red circle top, night"
    assert [answer[a:b] for a, b in phrases(answer)] == ["Corwick", "small red circle top", "night"]


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        ("red circle, night", "red circle, night", [True, True]),
        ("blue circle, night", "red circle, night", [False, True]),
        ("night, red circle", "red circle, night", [True, True]),
        ("red circle, red circle", "red circle, night", [True, False]),
        ("red circle", "red circle, night", [False]),  # something is missing: the end of it is wrong
    ],
)
def test_a_phrase_is_right_where_the_right_answer_has_it(answer: str, right: str, expected: list[bool]) -> None:
    assert [right for _, right in judge(answer, right).ends] == expected


@given(SEEDS)
def test_a_spoilt_answer_is_wrong_and_of_the_same_form(seed: int) -> None:
    rng = random.Random(seed)
    right = sample_known(rng).answer
    wrong = spoilt(right, rng, easy=seed % 2 == 0)
    assert wrong != right
    assert spoil(right, rng, 0.0) == right
    if wrong != "nothing":
        assert len(wrong.split()) == len(right.split())
        assert len(phrases(wrong)) == len(phrases(right))


@given(SEEDS)
def test_what_the_reply_says_is_what_the_marks_say(seed: int) -> None:
    rng = random.Random(seed)
    lesson = verify_lesson(sample_known(rng), rng, near=0.5) if seed % 2 else matching_lesson(rng)
    assert lesson.judged is not None
    assert lesson.parts[-1].endswith(f"Answer: {lesson.judged.answer}")  # type: ignore[union-attr]
    assert (lesson.reply == "yes") == all(right for _, right in lesson.judged.ends)


def test_marks_stand_at_the_last_token_of_every_phrase() -> None:
    processor = Checkpoint(MODELS / "teacher").processor
    rng = random.Random(3)
    lessons = [verify_lesson(sample_known(rng), rng) for _ in range(8)]
    batch = collate(lessons, processor)
    words = processor.tokenizer.decode
    for row, lesson in enumerate(lessons):
        assert lesson.judged is not None
        marked = [at for at in range(batch["labels"].shape[1]) if batch["kinds"][row, at] == MARK]
        assert [words(batch["labels"][row, at]) for at in marked] == ["yes" if ok else "no" for _, ok in lesson.judged.ends]
        for at, (end, _) in zip(marked, lesson.judged.ends, strict=True):
            assert words(batch["input_ids"][row, :at]).endswith(lesson.judged.answer[:end])
        (judged,) = (at for at in range(batch["labels"].shape[1]) if batch["kinds"][row, at] == JUDGEMENT)
        assert words(batch["labels"][row, judged]) == lesson.reply
        assert batch["labels"][row, judged + 1] != IGNORE  # the end of the turn
