"""Every prompt in every branch is tidy and equals its golden file, so that a review shows each change of what a model reads.

After an intended change run `UPDATE_GOLDEN=1 pytest tests/prompts/test_golden.py` and read the diff.

Do not change the `pocket` set without new training: the pocket teacher and students have learnt its text.
"""

from __future__ import annotations

import os
import re
from itertools import takewhile
from pathlib import Path

import pytest

from pipeline.traces.families import ANSWER, COMPOSED, FAMILIES
from prompts import BUILT_IN, ImageSlot, Prompt, PromptSet

GOLDEN = Path(__file__).parent / "golden"
HEADINGS = re.compile(r"^([^{}\n]{4,}?) *(?:\{\{.*)?$", re.MULTILINE)

Variables = dict[str, str | bool]
QUERY: dict[str, Variables] = {
    "image and text": {"has_image": True, "query_text": "with a hat"},
    "image": {"has_image": True, "query_text": ""},
    "text": {"has_image": False, "query_text": "a dog with a hat"},
}
REASON: dict[str, Variables] = {
    "": {},
    "rejected": {"complaint": "answer too short: 1 token"},
    "revealed image and text": {"revealed": True, "revealed_image": True, "revealed_text": "A hat."},
    "revealed image": {"revealed": True, "revealed_image": True, "revealed_text": ""},
    "revealed text": {"revealed": True, "revealed_image": False, "revealed_text": "A hat."},
    "revealed text, rejected": {
        "revealed": True,
        "revealed_image": False,
        "revealed_text": "A hat.",
        "complaint": "answer too short: 1 token",
    },
}
TARGET: dict[str, Variables] = {
    "image and text": {"has_target_image": True, "target_text": "A hat."},
    "image": {"has_target_image": True, "target_text": ""},
    "text": {"has_target_image": False, "target_text": "A hat."},
}
CANDIDATE: dict[str, Variables] = {
    "image and text": {"has_image": True, "candidate_text": "A hat."},
    "image": {"has_image": True, "candidate_text": ""},
    "text": {"has_image": False, "candidate_text": "A hat."},
}
ASKED: Variables = {"instruction": "Find it."}
FIRST: Variables = {"complaint": "", "revealed": False, "revealed_image": False, "revealed_text": ""}
BRANCHES: dict[str, dict[str, Variables]] = {
    "assess": {name: ASKED | query for name, query in QUERY.items()},
    "student_query": {name: ASKED | query for name, query in QUERY.items()},
    "student_candidate": CANDIDATE,
}
BRANCHES |= {
    f"verify_{kind}": {
        f"{name}; target {target}": ASKED | {"answer": "a hatted dog"} | query | TARGET[target]
        for name, query in QUERY.items()
        for target in TARGET
    }
    for kind in ("image", "text")
}
BRANCHES["verify_facet"] = {
    f"{name}; target {target}; {facet.name}": ASKED
    | {"facet": facet.name, "label": facet.label, "question": facet.question, "statement": "a hatted dog"}
    | query
    | TARGET[target]
    for name, query in QUERY.items()
    for target in TARGET
    for facet in (*COMPOSED.facets[:1], ANSWER)
}
BRANCHES |= {
    f"reason_{family}": {
        "; ".join(filter(None, (name, more))): ASKED | FIRST | query | REASON[more]
        for name, query in QUERY.items()
        for more in REASON
    }
    for family in FAMILIES
}


def shown(prompt: Prompt) -> str:
    return "".join(f"[{part.role} image]" if isinstance(part, ImageSlot) else part for part in prompt)


def test_all_templates_are_covered() -> None:
    for which in BUILT_IN:
        files = {path.stem for path in PromptSet.load(which).directory.glob("[!_]*.jinja")}
        assert files == BRANCHES.keys(), which


@pytest.mark.parametrize("name", BRANCHES)
def test_no_two_lines_of_the_full_set_run_together(name: str) -> None:
    prompts = PromptSet.load("full")
    sources = [path.read_text() for path in prompts.directory.glob("*.jinja") if path.stem.startswith("_") or path.stem == name]
    headings = {match[1] for source in sources for match in HEADINGS.finditer(source)}
    assert len(headings) > 10
    for branch, variables in BRANCHES[name].items():
        text = shown(prompts.render(name, **variables))
        for heading in headings:
            for match in re.finditer(re.escape(heading), text):
                assert match.start() == 0 or text[match.start() - 1] == "\n", f"{branch}: {heading!r} in mid-line"
        for image in re.findall(r"[^\n]*\[\w+ image\][^\n]*", text):
            assert re.fullmatch(r"\[\w+ image\]", image), f"{branch}: {image!r}"
        assert "\n\n\n" not in text, branch
        assert re.findall(r"[ \t]+$", text, re.MULTILINE) == [], branch
        assert text == text.strip(), branch


@pytest.mark.parametrize("name", BRANCHES)
@pytest.mark.parametrize("which", BUILT_IN)
def test_a_prompt_equals_its_golden_file(which: str, name: str) -> None:
    prompts = PromptSet.load(which)
    path = GOLDEN / which / f"{name}.txt"
    found = described({branch: shown(prompts.render(name, **variables)) for branch, variables in BRANCHES[name].items()})
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8"), "meant? then UPDATE_GOLDEN=1 pytest tests/prompts/test_golden.py"


def described(texts: dict[str, str]) -> str:
    """Renders the first branch in full, and of the others the lines after their common beginning with it."""
    first: list[str] = []
    sections = []
    for branch, text in texts.items():
        lines = f"{text}<end>".split("\n")
        shared = len([*takewhile(lambda pair: pair[0] == pair[1], zip(first, lines, strict=False))])
        first = first or lines
        where = f" (from line {shared + 1})" if shared else ""
        sections.append("\n".join([f"=== {branch}{where}", *lines[shared:]]))
    return "\n\n".join(sections) + "\n"
