"""The output form of a trace as an EBNF grammar for structured decoding (xgrammar's dialect, which vLLM takes).

What the grammar accepts is exactly what `Trace.render` writes, so that the parser never has to guess. Lines are bounded:
a model that runs on is brought to an end by the grammar instead of by the token limit.
"""

from __future__ import annotations

from pipeline.families import Family


def trace_grammar(family: Family, *, max_facet_chars: int = 600, max_answer_chars: int = 400) -> str:
    """The grammar of one family's traces. Lengths are in characters (code points)."""
    lines = " ".join(f'"{facet.label}: " facet "\\n"' for facet in family.facets)
    return "\n".join(
        (
            f'root ::= "<reasoning>\\n" {lines} "</reasoning>\\n<answer>" answer "</answer>"',
            f"facet ::= {_line(max_facet_chars)}",
            f"answer ::= {_line(max_answer_chars)}",
            r"inner ::= [^<>\r\n]",
            r"edge ::= [^<>\r\n\t\v\f \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\u001c-\u001f]",
        )
    )


def _line(most: int) -> str:
    return f"edge (inner{{0,{most - 2}}} edge)?"
