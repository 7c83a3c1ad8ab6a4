"""Task families and the facets of their traces: the one declaration behind prompts, grammar and parser.

The paper (TRACE, section on M-BEIR-CoT) gives one prompt per sub-task:

* visual reasoning, "enumerate fine-grained details, then summarise"        -> `VISUAL`
* instruction following (composed retrieval), "source state, target operation, invariant context" -> `COMPOSED`
* logical deduction (questions that take knowledge), "multi-step"           -> `KNOWLEDGE`
* text retrieval is not spelled out; intent, kind of text and key concepts follow the paper's student prompt -> `TEXT`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Facet:
    """One step of a trace. `label` opens its line; `hint` tells the teacher what to write there.

    `question`: what a verifier is asked about it, to be answered with yes or no (`verify.form: facets`).
    """

    name: str
    label: str
    hint: str
    question: str


@dataclass(frozen=True, slots=True)
class Family:
    """`answer` tells the teacher what the answer is a description of."""

    name: str
    facets: tuple[Facet, ...]
    answer: str


VISUAL: Final = Family(
    "visual",
    (
        Facet(
            "details",
            "Details",
            "the objects, their attributes, counts, positions and relations that matter",
            "Does each of these details belong to the right result?",
        ),
        Facet("summary", "Summary", "what the whole shows, in one sentence", "Does this sum up the right result?"),
    ),
    "a description of the matching image or caption",
)
TEXT: Final = Family(
    "text",
    (
        Facet(
            "intent",
            "Intent",
            "what the query wants to find out or illustrate",
            "Is this what the query wants to find out or to see illustrated?",
        ),
        Facet(
            "passage",
            "Passage",
            "the kind of text or illustrated text that would serve",
            "Is the right result a text, or an image with its text, of this kind and about this?",
        ),
        Facet(
            "concepts",
            "Concepts",
            "the names and notions it must contain",
            "Does the right result name these, or do they follow from it?",
        ),
    ),
    "a description of the text that is sought",
)
KNOWLEDGE: Final = Family(
    "knowledge",
    (
        Facet(
            "subject",
            "Subject",
            "the entity in the image that the question is about",
            "Is this the subject of the query, and of the right result?",
        ),
        Facet("asked", "Asked", "what exactly is asked about it", "Is this what the query asks?"),
        Facet(
            "deduction",
            "Deduction",
            "the facts that lead from the subject to the answer, step by step",
            "Is each of these facts right, and do they lead from the query to what the right result says?",
        ),
    ),
    "a description of the page or passage that holds the answer",
)
COMPOSED: Final = Family(
    "composed",
    (
        Facet(
            "source",
            "Source",
            "the state of the reference image, as far as it matters",
            "Is this what the query's image shows?",
        ),
        Facet("operation", "Operation", "what the text asks to change", "Is this the change that the query asks for?"),
        Facet(
            "invariant",
            "Invariant",
            "what stays as it is",
            "Is this the same in the query's image and in the right result?",
        ),
    ),
    "a description of the target image",
)

FAMILIES: Final[dict[str, Family]] = {family.name: family for family in (VISUAL, TEXT, KNOWLEDGE, COMPOSED)}

_OF_TASK: Final[dict[int, Family]] = {
    0: VISUAL,
    1: TEXT,
    2: TEXT,
    3: VISUAL,
    4: VISUAL,
    5: VISUAL,
    6: KNOWLEDGE,
    7: COMPOSED,
    8: KNOWLEDGE,
}


ANSWER: Final = Facet(
    "answer", "Answer", "a description of what is sought", "Does this describe the right result, and satisfy the query?"
)
"""A trace's answer, as verification by facet asks about it."""


def family_of(task_id: int) -> Family:
    """The family of an M-BEIR task (0 to 8)."""
    return _OF_TASK[task_id]
