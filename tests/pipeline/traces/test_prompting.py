from __future__ import annotations

import pytest

from pipeline.traces.prompting import assess_prompt, image_paths, reason_prompt, verify_prompt
from prompts import BUILT_IN, ImageSlot, PromptSet
from schemas.mbeir import TASK_MODALITIES, Candidate, Query

SPLIT_TASKS = [task for task in TASK_MODALITIES if task != 5]


def example(task_id: int) -> tuple[Query, Candidate]:
    asked, sought = TASK_MODALITIES[task_id]
    query = Query(
        qid="8:1",
        query_txt="one more dog" if asked.has_text else None,
        query_img_path="mbeir_images/q.jpg" if asked.has_image else None,
        query_modality=asked,
        pos_cand_list=("8:2",),
        task_id=task_id,
    )
    target = Candidate(
        did="8:2",
        txt="TARGET TEXT" if sought.has_text else None,
        img_path="t.jpg" if sought.has_image else None,
        modality=sought,
    )
    return query, target


def text_of(prompt: tuple[str | ImageSlot, ...]) -> str:
    return "".join(part for part in prompt if isinstance(part, str))


@pytest.mark.parametrize("task_id", SPLIT_TASKS)
@pytest.mark.parametrize("which", BUILT_IN)
def test_the_teacher_does_not_see_the_target_and_the_verifier_does(which: str, task_id: int) -> None:
    prompts, (query, target) = PromptSet.load(which), example(task_id)
    blind = (assess_prompt(prompts, query, "Find it."), reason_prompt(prompts, query, "Find it."))
    for prompt in blind:
        assert "TARGET" not in text_of(prompt)
        assert [part.role for part in prompt if isinstance(part, ImageSlot)] == (["query"] if query.query_img_path else [])
    verify = verify_prompt(prompts, query, "Find it.", "two dogs", target)
    roles = [part.role for part in verify if isinstance(part, ImageSlot)]
    assert "two dogs" in text_of(verify)
    assert ("TARGET TEXT" in text_of(verify)) == (target.txt is not None)
    assert ("target" in roles) == (task_id in (0, 2, 4, 7))
    assert set(roles) <= set(image_paths(query, target))


def test_a_complaint_is_shown_only_when_there_is_one() -> None:
    query, _ = example(7)
    for which in BUILT_IN:
        prompts = PromptSet.load(which)
        assert "too long" in text_of(reason_prompt(prompts, query, "Find it.", complaint="the answer is too long"))
        assert "rejected" not in text_of(reason_prompt(prompts, query, "Find it."))
