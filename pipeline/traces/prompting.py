"""Turns a query into a teacher prompt: the template, its variables and its images."""

from __future__ import annotations

from typing import Final

from pipeline.traces.families import Facet, family_of
from prompts import Prompt, PromptSet
from schemas.mbeir import Candidate, Query

_TEXT_TARGETS = frozenset({1, 3, 6, 8})
"""Tasks whose answers are verified against the target's text, as in the paper for OVEN and InfoSeek (even with an image)."""


def assess_prompt(prompts: PromptSet, query: Query, instruction: str) -> Prompt:
    return prompts.render("assess", **_variables(query, instruction))


def reason_prompt(
    prompts: PromptSet, query: Query, instruction: str, *, complaint: str = "", revealed: Candidate | None = None
) -> Prompt:
    """`complaint`: why an earlier attempt was rejected (in short, a colon, details); empty the first time.

    `revealed`: the target, for ablations in which the teacher is not blind to it.
    """
    return prompts.render(
        reason_template(query.task_id),
        complaint=complaint,
        revealed=revealed is not None,
        revealed_text=(revealed.txt or "") if revealed is not None else "",
        revealed_image=revealed is not None and revealed.img_path is not None,
        **_variables(query, instruction),
    )


def reason_template(task_id: int) -> str:
    return f"reason_{family_of(task_id).name}"


def verify_template(task_id: int) -> str:
    """Of the single question about the answer."""
    return "verify_text" if task_id in _TEXT_TARGETS else "verify_image"


def verify_prompt(prompts: PromptSet, query: Query, instruction: str, answer: str, target: Candidate) -> Prompt:
    """The only prompt that shows the target."""
    by_text = query.task_id in _TEXT_TARGETS
    return prompts.render(
        verify_template(query.task_id),
        answer=answer,
        target_text=target.txt or "",
        has_target_image=not by_text and target.img_path is not None,
        **_variables(query, instruction),
    )


FACET_TEMPLATE: Final = "verify_facet"


def verify_facet_prompt(
    prompts: PromptSet, query: Query, instruction: str, target: Candidate, *, facet: Facet, statement: str
) -> Prompt:
    """One question about a facet's text, or about the answer (`families.ANSWER`). What differs between them comes last."""
    by_text = query.task_id in _TEXT_TARGETS
    return prompts.render(
        FACET_TEMPLATE,
        facet=facet.name,
        label=facet.label,
        statement=statement,
        question=facet.question,
        target_text=target.txt or "",
        has_target_image=not by_text and target.img_path is not None,
        **_variables(query, instruction),
    )


def image_paths(query: Query, target: Candidate | None = None) -> dict[str, str]:
    """Role -> path below the M-BEIR root, for the roles that have an image."""
    paths = {"query": query.query_img_path} if query.query_img_path else {}
    if target is not None and target.img_path:
        paths["target"] = target.img_path
    return paths


def _variables(query: Query, instruction: str) -> dict[str, str | bool]:
    has_image = query.query_modality.has_image and bool(query.query_img_path)
    return {"instruction": instruction, "query_text": query.query_txt or "", "has_image": has_image}
