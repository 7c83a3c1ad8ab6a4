"""Parses teacher output into a `Trace`, or says why it is none.

Output under the grammar parses unchanged. Unconstrained output may differ in the case of labels, blank lines, bold marks around
labels, and a ``<think>…</think>`` block before the trace. Nothing else is tolerated: text is never dropped to make it fit.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from pydantic import ValidationError

from pipeline.traces.families import FAMILIES, Family
from schemas.construct import construct
from schemas.trace import FacetText, FormatReason, Malformed, Trace

_TAG: Final = re.compile(r"</?\s*(?:reasoning|answer)\s*>", re.IGNORECASE)
_THINK: Final = re.compile(r"^\s*<think>.*?</think>", re.IGNORECASE | re.DOTALL)
_LINE: Final = re.compile(r"^\s*(?:[-*]\s+)?(?:\*\*)?(?P<label>[A-Za-z][A-Za-z ]{0,30}?)(?:\*\*)?\s*:(?:\*\*)?\s*(?P<text>.*)$")
_LEAKS: Final = re.compile(
    r"<\|[a-z_]+\|>|\b(?:system|user) prompt\b|\boutput rules\b|\bas instructed\b|\bthe instructions? (?:say|ask|tell)s?\b"
    r"|\{\{|\}\}|\{%|\bworked example\b",
    re.IGNORECASE,
)
_LEAK_SIGNS: Final = ("<|", "prompt", "output rules", "as instructed", "instruction", "{{", "}}", "{%", "worked example")
"""Every ASCII text that `_LEAKS` matches contains one of these in lower case. Searching for them takes a tenth of the time."""
_LABELS: Final = frozenset(facet.label.lower() for family in FAMILIES.values() for facet in family.facets)
_ORDER: Final = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")


def parse_trace(output: str, family: Family) -> Trace | Malformed:
    """The trace in `output`, or what is wrong with its form."""
    text = _THINK.sub("", output, count=1).strip()
    if not text:
        return Malformed(reason=FormatReason.EMPTY_OUTPUT, detail="the output is empty")
    if leak := _leak(text):
        return Malformed(reason=FormatReason.PROMPT_LEAKAGE, detail=f"{leak[0]!r} belongs to the prompt")
    if plain := _rendered(family.name).fullmatch(text):
        return _trace(family, plain.groups())
    pieces = _sections(text)
    if isinstance(pieces, Malformed):
        return pieces
    reasoning, answer = pieces
    facets = _facets(reasoning, family)
    if isinstance(facets, Malformed):
        return facets
    if not answer:
        return Malformed(reason=FormatReason.EMPTY_ANSWER, detail="nothing between the answer tags")
    try:
        lines = [facet.model_dump() for facet in facets]  # instances would not be validated again
        return Trace.model_validate({"family": family.name, "facets": lines, "answer": answer})
    except ValidationError:
        bad = next((piece for piece in (*[facet.text for facet in facets], answer) if re.search(r"[<>\r\n]", piece)), answer)
        return Malformed(reason=FormatReason.STRAY_MARKUP, detail=f"angle brackets or line breaks in {bad[:80]!r}")


def _leak(text: str) -> re.Match[str] | None:
    if text.isascii() and not any(map(text.lower().__contains__, _LEAK_SIGNS)):
        return None
    return _LEAKS.search(text)


@lru_cache(maxsize=len(FAMILIES))
def _rendered(family: str) -> re.Pattern[str]:
    """A trace exactly as `Trace.render` writes it, which needs no further checks."""
    line = r"([^<>\s](?:[^<>\r\n]*[^<>\s])?)"
    lines = "".join(f"{facet.label}: {line}\n" for facet in FAMILIES[family].facets)
    return re.compile(f"<reasoning>\n{lines}</reasoning>\n<answer>{line}</answer>")


def _trace(family: Family, texts: tuple[str, ...]) -> Trace:
    """A trace of texts that are known to be `TraceText`."""
    facets = tuple(
        [
            construct(FacetText, {"name": facet.name, "label": facet.label, "text": text})
            for facet, text in zip(family.facets, texts, strict=False)
        ]
    )
    return construct(Trace, {"family": family.name, "facets": facets, "answer": texts[-1]})


def _sections(text: str) -> tuple[str, str] | Malformed:
    """(reasoning, answer) between their tags."""
    tags = [(re.sub(r"\s", "", match[0]).lower(), match) for match in _TAG.finditer(text)]
    names = [name for name, _ in tags]
    for name in _ORDER:
        if names.count(name) > 1:
            nested = names.index(name) + 1 == len(names) or names[names.index(name) + 1] == name
            reason = FormatReason.NESTED_TAG if nested else FormatReason.REPEATED_TAG
            return Malformed(reason=reason, detail=f"{name} stands {names.count(name)} times")
    for opening, missing in (("reasoning", FormatReason.MISSING_REASONING), ("answer", FormatReason.MISSING_ANSWER)):
        if f"<{opening}>" not in names:
            return Malformed(reason=missing, detail=f"no <{opening}>")
        if f"</{opening}>" not in names:
            return Malformed(reason=FormatReason.UNFINISHED, detail=f"<{opening}> is never closed")
    if tuple(names) != _ORDER:
        inside = names.index("<reasoning>") < names.index("<answer>") < names.index("</reasoning>")
        reason = FormatReason.NESTED_TAG if inside else FormatReason.REORDERED_TAGS
        return Malformed(reason=reason, detail=f"the tags come as {' '.join(names)}")
    marks = [match for _, match in tags]
    outside = (text[: marks[0].start()] + text[marks[1].end() : marks[2].start()] + text[marks[3].end() :]).strip()
    if outside:
        return Malformed(reason=FormatReason.TEXT_OUTSIDE, detail=f"outside the tags: {outside[:80]!r}")
    return text[marks[0].end() : marks[1].start()].strip(), text[marks[2].end() : marks[3].start()].strip()


def _facets(reasoning: str, family: Family) -> tuple[FacetText, ...] | Malformed:
    """The labelled lines. A line without any family's label continues the previous facet."""
    labels = {facet.label.lower(): facet for facet in family.facets}
    lines: list[tuple[str, list[str]]] = []
    for line in reasoning.replace("\r\n", "\n").split("\n"):  # as in the grammar: other line breaks are text
        match = _LINE.match(line)
        label = match["label"].strip().lower() if match else ""
        if match and label in labels:
            lines.append((label, [match["text"].strip()]))
        elif label in _LABELS:
            return Malformed(reason=FormatReason.UNKNOWN_FACET, detail=f"'{label}:' is a facet of another family")
        elif line.strip() and not lines:
            return Malformed(reason=FormatReason.UNKNOWN_FACET, detail=f"before the first facet: {line.strip()[:80]!r}")
        elif line.strip():
            lines[-1][1].append(line.strip())
    names = [name for name, _ in lines]
    for facet in family.facets:
        count = names.count(facet.label.lower())
        if count == 0:
            return Malformed(reason=FormatReason.MISSING_FACET, detail=f"no line '{facet.label}: …'")
        if count > 1:
            return Malformed(reason=FormatReason.REPEATED_FACET, detail=f"'{facet.label}:' stands {count} times")
    if names != list(labels):
        return Malformed(reason=FormatReason.REORDERED_FACETS, detail=f"the facets come as {', '.join(names)}")
    texts = [" ".join(part for part in parts if part) for _, parts in lines]
    for facet, text in zip(family.facets, texts, strict=True):
        if not text:
            return Malformed(reason=FormatReason.EMPTY_FACET, detail=f"nothing after '{facet.label}:'")
    # `Trace` validates the contents; only the form was checked here.
    return tuple(
        FacetText.model_construct(name=facet.name, label=facet.label, text=text)
        for facet, text in zip(family.facets, texts, strict=True)
    )
