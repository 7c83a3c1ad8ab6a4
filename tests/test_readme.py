"""README is one complete page. test_docs.py checks, as for all pages, that what it shows exists and runs."""

from __future__ import annotations

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 130


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README


def test_its_results_equal_those_of_the_results_page() -> None:
    """Compares means and think rates of the first table with the tables of docs/results.md."""
    results = (Path(__file__).parents[1] / "docs" / "results.md").read_text()
    local, union = re.findall(r"\| (?:local|union of all) pools \|.*?\n\n", results, re.DOTALL)
    names = {
        "TRACE": "trace",
        "TRACE, teacher's traces given": "trace, teacher's traces",
        "TRACE, routed by modality": "trace, routed by modality",
        "`direct`: never reasons": "direct",
        "base, untrained": "base",
    }
    cell = r"([\d.]+(?: \([\d.-]+\))?)"
    rows = re.findall(rf"^\| (.+?) \| {cell} \| {cell} \| ([\d.]+%) \|$", README, re.MULTILINE)
    assert [name for name, *_ in rows] == list(names)
    for name, *figures in rows:
        found = [
            re.search(rf"^\| {re.escape(names[name])} \|.*\| {cell} \| ([\d.]+%) \|$", table, re.MULTILINE)
            for table in (local, union)
        ]
        assert all(found)
        values = [re.sub(r" \(([\d.]+)-\1\)", "", one[1]) for one in found]  # type: ignore[index]
        assert figures == [*values, found[0][2]]  # type: ignore[index]
