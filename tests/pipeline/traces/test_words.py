from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.traces.words import normalised


@given(st.text(max_size=40), st.sampled_from([" ", "  ", " - ", ", "]))
def test_normalisation_ignores_case_punctuation_and_space(text: str, space: str) -> None:
    assert normalised(normalised(text)) == normalised(text)
    ascii_text = text.encode("ascii", "ignore").decode().replace("'", "")
    assert normalised(ascii_text.upper()) == normalised(ascii_text)
    assert normalised(f"a{space}b!") == "a b"
