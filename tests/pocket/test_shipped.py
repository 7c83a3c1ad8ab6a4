"""The shipped checkpoints: they load as anyone would load them, are what their cards say.

That vLLM agrees with transformers on them is tested where servers are: test_real_server (teacher), test_merge (base).
"""

from __future__ import annotations

import re

import pytest

from pocket.measure import measure
from pocket.models import MODELS, Role

ROLES: tuple[Role, ...] = ("teacher", "base")
LIMIT = 15 << 20


@pytest.mark.parametrize("role", ROLES)
def test_what_is_shipped_is_small_whole_and_labelled(role: Role) -> None:
    directory = MODELS / role
    names = {path.name for path in directory.iterdir()}
    assert {"model.safetensors", "config.json", "processor_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert {"README.md", "training.jsonl", "stem.training.jsonl"} <= names
    assert sum(path.stat().st_size for path in directory.iterdir()) <= LIMIT
    card = (directory / "README.md").read_text()
    assert card.split("---")[2].strip().startswith("**SYNTHETIC")
    parameters = int(re.search(r"of ([\d,]+) parameters", card)[1].replace(",", ""))  # type: ignore[index]
    assert parameters <= 6_000_000


def test_both_share_one_tokenizer() -> None:
    assert (MODELS / "teacher/tokenizer.json").read_bytes() == (MODELS / "base/tokenizer.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_the_cards_figures_hold_on_other_lessons(role: Role) -> None:
    """Fewer lessons than the card's, from a stream of their own: the figures agree within what so few can tell."""
    card = (MODELS / role / "README.md").read_text()
    found = measure(role, MODELS / role, 24, seed=77)
    checked = 0
    for skill, figures in found.items():
        row = re.search(rf"^\| {re.escape(skill)} \|(.*)\|$", card, re.MULTILINE)
        assert row is not None, skill
        cells = [float(cell) if cell.strip() else None for cell in row[1].split("|")]
        stated = dict(zip(("n", "exact", "answer", "auc", "accuracy"), cells, strict=False))
        for name in ("answer", "auc"):
            if name in figures and figures[name] == figures[name]:
                assert figures[name] == pytest.approx(stated[name], abs=0.25), (skill, name)
                checked += 1
    assert checked >= (8 if role == "teacher" else 4)
