"""What `teacher check` prints of its findings."""

from __future__ import annotations

import pytest
from rich.text import Text

from mbeir_cot.commands.teacher import _line
from pipeline.serving.preflight import Finding
from pipeline.teacher.diagnosis import Trouble


@pytest.mark.parametrize("trouble", [None, Trouble("it serves [a]", "correct [/b]", stops=True)])
def test_an_address_in_brackets_keeps_its_host(trouble: Trouble | None) -> None:
    shown = Text.from_markup(_line(Finding("http://[fd00::1]:8000/v1", "reachable", trouble))).plain
    assert "http://[fd00::1]:8000/v1" in shown
    assert trouble is None or ("it serves [a]" in shown and "correct [/b]" in shown)
