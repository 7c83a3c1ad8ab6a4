"""The output form of a trace as an EBNF grammar for structured decoding (xgrammar's dialect, which vLLM takes).

The grammar accepts exactly what `Trace.render` writes, so that the parser never has to guess. The length of lines is left to
`max_tokens` and the screens: with the 150,000 tokens of a real vocabulary a bounded line costs about 1 ms per token of an
answer, growing along the line, and an unbounded one 0.003 ms (`bench/grammar.py`).

Everything is in the root rule. A separate rule for lines would make a token some 60 times as expensive: xgrammar prepares the
mask of each position in a rule once, but tokens that extend beyond the rule's end (a full stop and a line feed in one) depend
on the calling rule and are checked every time."""

from __future__ import annotations

from typing import Final

from pipeline.traces.families import Family

_INNER: Final = r"[^<>\r\n]"
_EDGE: Final = r"[^<>\r\n\t\v\f \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\u001c-\u001f]"


def trace_grammar(family: Family, *, max_facet_chars: int | None = None, max_answer_chars: int | None = None) -> str:
    """The grammar of one family's traces. Bounds are in characters (code points); None: unbounded."""
    lines = " ".join(f'"{facet.label}: " {_line(max_facet_chars)} "\\n"' for facet in family.facets)
    return f'root ::= "<reasoning>\\n" {lines} "</reasoning>\\n<answer>" {_line(max_answer_chars)} "</answer>"'


def _line(most: int | None) -> str:
    if most == 1:
        return _EDGE
    between = f"{_INNER}*" if most is None else f"{_INNER}{{0,{most - 2}}}"
    return f"{_EDGE} ({between} {_EDGE})?"
