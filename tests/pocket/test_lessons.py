from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.traces.families import FAMILIES, family_of
from pipeline.traces.parser import parse_trace
from pocket.curriculum import base_skills, closed_book, perception, teacher_tasks, think_aloud
from pocket.curriculum.example import Lesson
from pocket.curriculum.query_mix import sample_known
from pocket.curriculum.solved_query import other_scene
from pocket.evaluation.skills import auc, held_out
from pocket.training.tiny_qwen import build_model, build_processor, build_tokenizer
from pocket.training.train_loop import IGNORE, Recipe, collate, fit, learning_rate
from pocket.world.instructions import INSTRUCTIONS
from pocket.world.scene import Claim, Partial, Scene, Thing
from schemas.mbeir import DatasetTask

INSTRUCTIONS_SAID = {said for choices in INSTRUCTIONS.values() for said in choices}
seeds = st.integers(0, 2**32).map(random.Random)


@given(seeds)
def test_correct_traces_have_the_required_form(rng: random.Random) -> None:
    known = sample_known(rng)
    trace = teacher_tasks.right_trace(known)
    assert parse_trace(trace.render(), family_of(DatasetTask.parse(known.dataset_task).task_id)) == trace
    assert known.answer not in known.wrong
    assert known.target_picture is not None or known.target_text


@pytest.mark.slow
def test_every_task_family_and_kind_of_answer_is_taught() -> None:
    rng = random.Random(1)
    lessons = [teacher_tasks.sample_lesson(rng) for _ in range(1500)]
    skills = Counter(lesson.skill for lesson in lessons)
    assert {f"{kind}/{family}" for kind in ("assess", "reason", "verify") for family in FAMILIES} < set(skills)
    for kind, labels in (("assess", {"simple", "complex"}), ("verify", {"yes", "no"})):
        replies = Counter(lesson.reply for lesson in lessons if lesson.skill.startswith(kind))
        assert set(replies) == labels
        assert min(replies.values()) > 0.25 * replies.total()


@given(seeds)
def test_the_base_never_sees_what_trace_adds(rng: random.Random) -> None:
    courses = (
        base_skills.sample_lesson,
        base_skills.sample_practice_lesson,
        closed_book.sample_closed_book_lesson,
        think_aloud.sample_think_aloud_lesson,
    )
    for sample in courses:
        _has_no_trace(sample(rng))
    lesson = base_skills.sample_lesson(rng)
    assert lesson.reply[0].isupper()
    assert lesson.reply.endswith(".")


def _has_no_trace(lesson: Lesson) -> None:
    words = "".join(part for part in lesson.parts if isinstance(part, str)) + lesson.reply
    for telling in (
        "<reasoning>",
        "<answer>",
        *(f"{facet.label}:" for family in FAMILIES.values() for facet in family.facets),
        *INSTRUCTIONS_SAID,
        "Assess",
        "Verify",
        "complex",
        "Find",
        "Query:",
    ):
        assert telling not in words
    assert lesson.reply


@given(seeds)
def test_a_form_has_the_requested_entries_in_order_and_then_the_answer(rng: random.Random) -> None:
    lesson = think_aloud.fill_in(rng)
    asked = "".join(part for part in lesson.parts if isinstance(part, str))
    *lines, answer = lesson.reply.split("\n")
    entries = re.findall(r"(?:^|\. )([A-Z][a-z]+): ", "\n".join(lines))
    assert len(entries) == len(FAMILIES[lesson.skill.removeprefix("form/")].facets)
    assert ", ".join(entries) in asked
    assert answer


def test_any_word_is_repeated_exactly() -> None:
    rng = random.Random(2)
    for lesson in (think_aloud.repeat(rng) for _ in range(50)):
        assert lesson.reply in lesson.parts[0]


@given(seeds)
def test_another_scene_is_found_even_if_few_changes_contradict_the_text(rng: random.Random) -> None:
    same = [Thing("small", "red", "circle", cell) for cell in rng.sample(range(9), 4)]
    scene = Scene.of(same, "night")
    vague = Claim((Partial("circle"),) * 4)
    assert not vague.matches(other_scene(scene, rng, than=vague))


@given(seeds)
def test_first_lessons_have_a_picture_and_a_short_reply(rng: random.Random) -> None:
    lesson = perception.sample_perception_lesson(rng)
    assert len(lesson.images) == 1
    assert lesson.reply


def test_held_out_lessons_are_not_training_lessons() -> None:
    rng = random.Random("lessons:1")
    trained = {
        (lesson.skill, lesson.reply, str(lesson.parts[0])) for lesson in (teacher_tasks.sample_lesson(rng) for _ in range(500))
    }
    fresh = held_out(teacher_tasks.sample_lesson, 5, seed=0)
    assert len(fresh) == 13
    long = [lesson for skill, drawn in fresh.items() for lesson in drawn if skill == "reason/composed"]
    assert not [lesson for lesson in long if (lesson.skill, lesson.reply, str(lesson.parts[0])) in trained]


@pytest.fixture(scope="module")
def processor():  # type: ignore[no-untyped-def]
    return build_processor(build_tokenizer(["Describe. a red circle and a blue square yes no"] * 20, 400))


def lessons() -> list[Lesson]:
    picture = Image.new("RGB", (128, 128), "red")
    return [Lesson("a", ("Describe. ", picture), "a red square"), Lesson("b", ("a red circle and a blue square",), "yes")]


def test_only_replies_are_learnt(processor) -> None:  # type: ignore[no-untyped-def]
    batch = collate(lessons(), processor)
    tokenizer = processor.tokenizer
    for row, lesson in zip(range(2), lessons(), strict=True):
        learnt = batch["labels"][row] != IGNORE
        assert tokenizer.decode(batch["input_ids"][row][learnt]) == f"{lesson.reply}<|im_end|>"
        assert (batch["attention_mask"][row][learnt] == 1).all()
    assert (batch["input_ids"][0] == processor.image_token_id).sum() == 16
    assert batch["mm_token_type_ids"].sum() == 16


def test_batches_for_generation_end_in_the_prompt(processor) -> None:  # type: ignore[no-untyped-def]
    batch = collate(lessons(), processor, with_reply=False)
    assert "labels" not in batch
    assert (batch["attention_mask"][:, -1] == 1).all()
    assert processor.tokenizer.decode(batch["input_ids"][1]).endswith("<|im_start|>assistant\n")


def test_prompts_are_rendered_with_the_chat_template(processor) -> None:  # type: ignore[no-untyped-def]
    batch = collate(lessons()[:1], processor, with_reply=False)
    text = processor.apply_chat_template(lessons()[0].messages, add_generation_prompt=True, tokenize=False)
    direct = processor(text=[text], images=lessons()[0].images, return_tensors="pt")
    assert batch["input_ids"].tolist() == direct["input_ids"].tolist()
    assert torch.equal(batch["pixel_values"], direct["pixel_values"])


def test_the_learning_rate_warms_up_and_falls() -> None:
    recipe = Recipe(steps=1000, lr=1.0, warmup=100)
    rates = [learning_rate(step, recipe) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == rates[100] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.02, abs=1e-3)


def test_auc() -> None:
    assert auc([0.9, 0.8, 0.1], [True, True, False]) == 1.0
    assert auc([0.5, 0.5], [True, False]) == 0.5
    assert auc([0.1, 0.4, 0.35, 0.8], [False, False, True, True]) == 0.75


def _one_thing(rng: random.Random) -> Lesson:
    return Lesson("x", ("yes or no?",), rng.choice(("yes", "no")) if rng.random() < 0.1 else "yes")


@pytest.mark.slow
def test_training_learns_and_is_determined_by_its_seed(processor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    recipe = Recipe(steps=60, batch=8, warmup=10, lr=3e-3, seed=4)
    weights = []
    for run in range(2):
        torch.manual_seed(0)
        model = build_model(processor.tokenizer, hidden=256, layers=1)
        log = tmp_path / f"{run}.jsonl"
        weights.append(fit(model, processor, _one_thing, recipe, log))
        assert '"step": 50' in log.read_text()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    model.load_state_dict(weights[0])
    inputs = collate([Lesson("x", ("yes or no?",), "")], processor, with_reply=False)
    assert processor.tokenizer.decode(model(**inputs).logits[0, -1].argmax()) == "yes"


@pytest.mark.slow
def test_only_the_long_course_has_several_changes_and_three_hops() -> None:
    from pocket.curriculum.composed import edited_scene
    from pocket.curriculum.difficulty import demanding
    from pocket.curriculum.knowledge import about_picture

    def most(rng: random.Random) -> tuple[int, int]:
        changes = max(edited_scene(rng).text.count(", then ") for _ in range(200))
        hops = max(about_picture(rng).facets[2].count(", ") for _ in range(200))
        return changes, hops

    assert most(random.Random(1))[0] == 0
    with demanding():
        assert most(random.Random(1)) == (2, 2)
    assert most(random.Random(1))[0] == 0
