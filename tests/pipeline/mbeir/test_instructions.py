from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.mbeir.instructions import FixedChoice, InstructionTable, SeededChoice, candidate_text, format_string, query_text
from pipeline.mbeir.jsonl import MalformedInput
from schemas.errors import InputError
from schemas.mbeir import Modality

OVEN_KEY = (5, Modality.IMAGE_TEXT, Modality.TEXT)


# Outputs of UniIR's own function.
@pytest.mark.parametrize(
    ("text", "formatted"),
    [
        ('"hi"', "Hi."),
        ('" hi "', " hi ."),
        ('he said "x"', 'He said "x.'),
        ("end,", "End,."),
        ("a\r\nb", "A\nb."),
        ("ßx", "SSx."),
        (None, ""),
        ("", ""),
        ('""', ""),
        ("done!", "Done!"),
    ],
)
def test_format_string_is_uniirs(text: str | None, formatted: str) -> None:
    assert format_string(text) == formatted


@given(st.text())
def test_formatted_text_is_empty_or_closed(text: str) -> None:
    formatted = format_string(text)
    assert formatted == "" or formatted[-1] in ".?!"
    assert "\r" not in formatted
    assert format_string(formatted) == formatted or '"' in text or formatted != formatted.strip()


def test_query_text_is_assembled_before_it_is_formatted() -> None:
    assert query_text("find it.", ' "a  dog" ') == 'Find it.  "a  dog.'
    assert query_text("Find the same picture.", None) == "Find the same picture."
    assert candidate_text("a dog") == "A dog."


def test_the_table_is_read_with_any_line_ending(mbeir: Path) -> None:
    path = mbeir / "instructions" / "query_instructions.tsv"
    assert b"\r\n" in path.read_bytes()
    table = InstructionTable.load(path)
    assert len(table) == 5
    assert table.prompts(*OVEN_KEY) == ("Name it.", "What is it?", "Identify it.", "Tell its name.")
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))
    assert InstructionTable.load(path).prompts(*OVEN_KEY) == table.prompts(*OVEN_KEY)


def test_the_choice_depends_on_the_query_only(mbeir: Path) -> None:
    table = InstructionTable.load(mbeir / "instructions" / "query_instructions.tsv")
    assert table.choose(*OVEN_KEY, FixedChoice(2), split="val", qid="5:1") == "Identify it."
    chosen = [table.choose(*OVEN_KEY, SeededChoice(1), split="val", qid=f"5:{n}") for n in range(1, 401)]
    assert chosen == [table.choose(*OVEN_KEY, SeededChoice(1), split="val", qid=f"5:{n}") for n in range(1, 401)]
    assert min(Counter(chosen).values()) > 60  # four prompts, each about 100 times
    assert chosen != [table.choose(*OVEN_KEY, SeededChoice(2), split="val", qid=f"5:{n}") for n in range(1, 401)]
    assert chosen != [table.choose(*OVEN_KEY, SeededChoice(1), split="test", qid=f"5:{n}") for n in range(1, 401)]


def test_an_unknown_key_is_named(mbeir: Path) -> None:
    table = InstructionTable.load(mbeir / "instructions" / "query_instructions.tsv")
    with pytest.raises(InputError, match=r"query_instructions\.tsv has no instruction for dataset 8 \(cirr\), text → text"):
        table.prompts(8, Modality.TEXT, Modality.TEXT)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("text\timage\tMSCOCO\t9", r":2: prompts = .*at least 1"),
        ("text\tvideo\tMSCOCO\t9\tx", r":2: cand_modality = 'video'"),
        ("text\timage\tMSCOCO\t77\tx", r":2: dataset_id = '77'"),
        ("text", r":2: cand_modality = ''"),
        ("text\timage\tMSCOCO\t9\tx\ntext\timage\tMSCOCO\t9\ty", r":3: a second row for dataset 9 \(mscoco\)"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "i.tsv"
    path.write_text("query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\n" + line)
    with pytest.raises(MalformedInput, match=message):
        InstructionTable.load(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "i.tsv"
    path.write_text("a\tb\n")
    with pytest.raises(MalformedInput, match=":1: the header must begin with"):
        InstructionTable.load(path)
    path.write_text("")
    with pytest.raises(MalformedInput, match="empty"):
        InstructionTable.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        InstructionTable.load(path)
    with pytest.raises(InputError, match="cannot read the instructions"):
        InstructionTable.load(tmp_path / "none.tsv")
