"""The auxiliary losses for verification: labels per token, the losses, and the added layers."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from pocket.curriculum.example import Lesson
from pocket.curriculum.verification import judging_lesson
from pocket.training.tiny_qwen import build_model, build_processor, build_tokenizer, deepened
from pocket.training.train_loop import IGNORE, collate, model_inputs
from pocket.training.verification_loss import collate_judged, judging_losses

ANSWERS = ("small red circle top left", "a large blue square", "night", "small green star")


@pytest.fixture(scope="module")
def processor() -> Any:
    return build_processor(build_tokenizer([f"Verify: yes or no? Target: Answer: {' '.join(ANSWERS)}, no, yes"] * 20, 420))


def lesson(answer: str, truth: str) -> Lesson:
    return judging_lesson("verify/x", [f"Verify: yes or no?\nTarget: {truth}\nAnswer: {answer}"], answer, truth)


def test_every_position_of_a_swapped_answer_expects_its_correct_word(processor: Any) -> None:
    batch = collate_judged([lesson("small blue star top left", "small red circle top left")], processor)
    words = processor.tokenizer.decode
    expected = [(at, words(token)) for at, token in enumerate(batch["expected"][0].tolist()) if token != IGNORE]
    words_at = [words(batch["input_ids"][0, at]).strip() for at, _ in expected]
    assert words_at == ["small", "blue", "star", "top", "left"]
    assert [word.strip() for _, word in expected] == ["small", "red", "circle", "top", "left"]
    marks = [int(mark) for mark in batch["marks"][0] if mark != IGNORE]
    assert marks == [1, 0, 0, 1, 1, 1]  # the last is for the end: nothing is missing


def test_an_answer_that_lacks_something_expects_more_at_its_end(processor: Any) -> None:
    batch = collate_judged([lesson("small red circle", "small red circle, night")], processor)
    expected = [at for at, token in enumerate(batch["expected"][0].tolist()) if token != IGNORE]
    assert processor.tokenizer.decode(batch["input_ids"][0, expected[-1]]) == "<|im_end|>"
    assert processor.tokenizer.decode(batch["expected"][0, expected[-1]]).strip().startswith(",")
    assert [int(mark) for mark in batch["marks"][0] if mark != IGNORE] == [1, 1, 1, 0]


def test_other_lessons_are_collated_as_usual(processor: Any) -> None:
    plain = Lesson("a", ("Verify: yes",), "a large blue square")
    batch, usual = collate_judged([plain], processor), collate([plain], processor)
    assert torch.equal(batch["labels"], usual["labels"])
    assert torch.equal(batch["expected"], usual["labels"])
    assert bool((batch["marks"] == IGNORE).all())


def test_added_layers_change_nothing_at_first(processor: Any) -> None:
    torch.manual_seed(1)
    model = build_model(processor.tokenizer, hidden=256, layers=2, intermediate=64).eval()
    for layer in model.model.language_model.layers:  # eight neurons that do nothing
        layer.mlp.down_proj.weight.data[:, ::8] = 0
    grown = deepened(model, layers=4, intermediate=56).eval()
    inputs = model_inputs(collate([lesson("night", "night")], processor))
    with torch.inference_mode():
        assert torch.allclose(model(**inputs).logits, grown(**inputs).logits, atol=1e-5)
    assert len(grown.model.language_model.layers) == 4
    assert grown.config.text_config.intermediate_size == 56


@pytest.mark.slow
def test_the_losses_teach_comparison(processor: Any) -> None:
    """A few words shown as text, for a few hundred steps; judgements of whole answers do not teach it in thousands."""
    rng = random.Random(3)
    torch.manual_seed(0)
    model = build_model(processor.tokenizer, hidden=256, layers=4, intermediate=128)
    losses = judging_losses(model, processor)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    words = [word for answer in ANSWERS for word in answer.split()]
    found: list[dict[str, float]] = []
    for _ in range(120):
        lessons = []
        for _ in range(16):
            truth = " ".join(rng.sample(words, 4))
            answer = truth if rng.random() < 0.5 else " ".join([*truth.split()[:3], rng.choice(words)])
            lessons.append(lesson(answer, truth))
        parts = losses(collate_judged(lessons, processor))
        torch.stack(list(parts.values())).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        found.append({name: part.item() for name, part in parts.items()})
    assert set(found[0]) == {"expected", "words", "attention", "judgement"}
    first, last = ({name: sum(f[name] for f in part) / 10 for name in found[0]} for part in (found[:10], found[-10:]))
    assert last["expected"] < 0.7 * first["expected"]
    assert last["attention"] < 0.5 * first["attention"]
