"""Grammar, parser and trace agree: the parser reads exactly what the grammar allows and traces render."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.real_vocabulary import ROWS
from pipeline.traces import parser
from pipeline.traces.families import COMPOSED, FAMILIES, Family, family_of
from pipeline.traces.grammar import trace_grammar
from pipeline.traces.parser import parse_trace
from schemas.trace import FacetText, FormatReason, Malformed, Trace

GOOD = "<reasoning>\nSource: a dog\nOperation: add a hat\nInvariant: the dog\n</reasoning>\n<answer>a dog with a hat</answer>"

_CONTROL = r"\x00-\x1f\x7f-\x9f"
_LEAKY = re.compile(r"prompt|rules|instruct|example|\{\{|\}\}|\{%", re.IGNORECASE)
MARKS = [
    *"<>\n\r\t *:-\x1c\x85\u2028\u3000ſK",
    "**",
    "\r\n",
    "Source: ",
    "asked: ",
    "as instructed",
    "<|im_end|>",
    "{{",
    "<think>x</think>",
]
lines = st.from_regex(rf"[^<>\s{_CONTROL}](?:[^<>{_CONTROL}\u2028\u2029]{{0,30}}[^<>\s{_CONTROL}])?", fullmatch=True).filter(
    lambda text: not _LEAKY.search(text)
)


@st.composite
def traces(draw: st.DrawFn) -> tuple[Family, Trace]:
    family = draw(st.sampled_from(list(FAMILIES.values())))
    facets = tuple(FacetText(name=facet.name, label=facet.label, text=draw(lines)) for facet in family.facets)
    return family, Trace(family=family.name, facets=facets, answer=draw(lines))


@given(traces())
def test_parsing_what_is_rendered_gives_the_trace(made: tuple[Family, Trace]) -> None:
    family, trace = made
    assert parse_trace(trace.render(), family) == trace


@given(traces())
def test_reasoning_is_running_text_without_tags(made: tuple[Family, Trace]) -> None:
    _, trace = made
    assert "<" not in trace.reasoning
    assert "\n" not in trace.reasoning
    assert all(facet.text in trace.reasoning for facet in trace.facets)


@pytest.fixture(scope="module")
def compiler():  # type: ignore[no-untyped-def]
    xgrammar = pytest.importorskip("xgrammar")
    vocabulary = [chr(c) for c in range(32, 127)] + ["\n", "é", "。", "Source: ", "<answer>", "</s>"]
    info = xgrammar.TokenizerInfo(vocabulary, vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[len(vocabulary) - 1])
    return xgrammar, xgrammar.GrammarCompiler(info)


def accepts(compiler, family: Family, text: str, **bounds: int) -> bool:  # type: ignore[no-untyped-def]
    xgrammar, grammars = compiler
    matcher = xgrammar.GrammarMatcher(
        grammars.compile_grammar(trace_grammar(family, **bounds)), terminate_without_stop_token=True
    )
    return bool(matcher.accept_string(text) and matcher.is_terminated())


@settings(max_examples=60)
@given(made=traces())
def test_the_grammar_accepts_what_is_rendered(compiler, made: tuple[Family, Trace]) -> None:  # type: ignore[no-untyped-def]
    family, trace = made
    assert accepts(compiler, family, trace.render())


@settings(max_examples=150)
@given(text=st.text(st.sampled_from("ab<> \n:"), max_size=12), where=st.integers(0, len(GOOD)))
def test_the_parser_parses_all_that_the_grammar_accepts(compiler, text: str, where: int) -> None:  # type: ignore[no-untyped-def]
    changed = GOOD[:where] + text + GOOD[where:]
    if accepts(compiler, COMPOSED, changed):
        parsed = parse_trace(changed, COMPOSED)
        assert isinstance(parsed, Trace)
        assert parsed.render() == changed


@pytest.mark.parametrize("mark", ["\u2028", "\x0b", "\x0c", "\x85"])
def test_only_line_feeds_end_a_line(compiler, mark: str) -> None:  # type: ignore[no-untyped-def]
    """The grammar allows other line breaks within a facet, so they must not begin a new one."""
    output = GOOD.replace("add a hat", f"add{mark}Source: a hat")
    assert accepts(compiler, COMPOSED, output)
    parsed = parse_trace(output, COMPOSED)
    assert isinstance(parsed, Trace), parsed
    assert parsed.facets[1].text == f"add{mark}Source: a hat"


@pytest.mark.parametrize("family", FAMILIES.values(), ids=str)
def test_lengths_are_bounded(compiler, family: Family) -> None:  # type: ignore[no-untyped-def]
    facets = tuple(FacetText(name=f.name, label=f.label, text="x" * 40) for f in family.facets)
    trace = Trace(family=family.name, facets=facets, answer="y" * 20)
    assert accepts(compiler, family, trace.render(), max_facet_chars=40, max_answer_chars=20)
    assert not accepts(compiler, family, trace.render(), max_facet_chars=39, max_answer_chars=20)
    assert not accepts(compiler, family, trace.render(), max_facet_chars=40, max_answer_chars=19)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=str)
def test_lengths_are_unbounded_unless_bounds_are_set(compiler, family: Family) -> None:  # type: ignore[no-untyped-def]
    """A bounded repetition, or a rule within a line, costs a millisecond per token for its mask (see bench/grammar.py)."""
    grammar = trace_grammar(family)
    assert re.findall(r"\{\d*,?\d*\}", grammar) == []
    assert grammar.count("::=") == 1
    facets = tuple(FacetText(name=f.name, label=f.label, text="x" * 5000) for f in family.facets)
    assert accepts(compiler, family, Trace(family=family.name, facets=facets, answer="y" * 5000).render())


@pytest.mark.parametrize("most", [1, 2, 3])
def test_small_bounds_are_enforced(compiler, most: int) -> None:  # type: ignore[no-untyped-def]
    for length in range(1, 5):
        facets = tuple(FacetText(name=f.name, label=f.label, text="x" * length) for f in COMPOSED.facets)
        trace = Trace(family=COMPOSED.name, facets=facets, answer="y")
        assert accepts(compiler, COMPOSED, trace.render(), max_facet_chars=most, max_answer_chars=1) == (length <= most)


@pytest.mark.parametrize("blank", [" ", "   ", "\t", "\u00a0", "\u3000", "\x1c", "\u2028"])
def test_a_line_of_blanks_is_neither_written_nor_read(compiler, blank: str) -> None:  # type: ignore[no-untyped-def]
    for said, reason in (("add a hat", FormatReason.EMPTY_FACET), ("a dog with a hat", FormatReason.EMPTY_ANSWER)):
        output = GOOD.replace(said, blank)
        assert not accepts(compiler, COMPOSED, output)
        parsed = parse_trace(output, COMPOSED)
        assert isinstance(parsed, Malformed)
        assert parsed.reason is reason
        assert not accepts(compiler, COMPOSED, GOOD.replace(said, f"{said}{blank}"))


def test_the_grammar_refuses_other_labels_and_orders(compiler) -> None:  # type: ignore[no-untyped-def]
    assert accepts(compiler, COMPOSED, GOOD)
    assert not accepts(compiler, COMPOSED, GOOD.replace("Source", "Details"))
    assert not accepts(compiler, COMPOSED, GOOD.replace("a dog\n", "\n"))
    assert not accepts(compiler, COMPOSED, GOOD + " ")


@pytest.fixture(scope="module")
def real_compiler(real_qwen):  # type: ignore[no-untyped-def]
    xgrammar = pytest.importorskip("xgrammar")
    info = xgrammar.TokenizerInfo.from_huggingface(real_qwen, vocab_size=ROWS["7B"], stop_token_ids=[real_qwen.eos_token_id])
    return xgrammar, xgrammar.GrammarCompiler(info, max_threads=1)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=str)
def test_a_real_vocabulary_can_write_traces_only(real_compiler, real_qwen, family: Family) -> None:  # type: ignore[no-untyped-def]
    """Token by token, as in a server: the mask allows each token of a trace in its turn, and none that leaves the form."""
    xgrammar, grammars = real_compiler
    facets = tuple(
        FacetText(name=f.name, label=f.label, text="一隻狗, 2 cats (one asleep) - “naïve”; 3.") for f in family.facets
    )
    text = Trace(family=family.name, facets=facets, answer="two dogs on sand").render()
    compiled = grammars.compile_grammar(trace_grammar(family))
    mask = xgrammar.allocate_token_bitmask(1, ROWS["7B"])

    def is_open(matcher, token: int) -> bool:  # type: ignore[no-untyped-def]
        matcher.fill_next_token_bitmask(mask)
        return bool(mask[0, token // 32].item() >> (token % 32) & 1)

    def first_refused(tokens: list[int]) -> int | None:
        matcher = xgrammar.GrammarMatcher(compiled)
        for place, token in enumerate(tokens):
            if not is_open(matcher, token):
                return place
            assert matcher.accept_token(token)
        return None

    tokens, end = real_qwen.encode(text, add_special_tokens=False), real_qwen.eos_token_id
    assert first_refused([*tokens, end]) is None
    assert first_refused([*tokens[:-1], end]) == len(tokens) - 1
    image = real_qwen.convert_tokens_to_ids("<|image_pad|>")
    assert first_refused([*tokens[:8], image]) == 8
    for bad in (
        f"Sure! {text}",
        text.replace("2 cats", "2 <cats>"),
        text.replace(family.facets[-1].label, "Colour"),
        f"{text}\n",
    ):
        assert first_refused(real_qwen.encode(bad, add_special_tokens=False)) is not None


@pytest.mark.parametrize(
    "output",
    [
        GOOD,
        f"\n\n{GOOD}  \n",
        f"<think>hm, a dog</think>\n{GOOD}",
        GOOD.replace("Source:", "**Source:**").replace("Operation:", "- operation :"),
        GOOD.replace("\nInvariant", "\n\nInvariant"),
        GOOD.replace("<reasoning>", "<Reasoning>").replace("<answer>", "< answer >"),
        GOOD.replace("add a hat", "add\na hat"),
    ],
)
def test_unconstrained_output_is_parsed(output: str) -> None:
    parsed = parse_trace(output, COMPOSED)
    assert isinstance(parsed, Trace), parsed
    assert [facet.text for facet in parsed.facets] == ["a dog", "add a hat", "the dog"]
    assert parsed.answer == "a dog with a hat"


R = FormatReason


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("", R.EMPTY_OUTPUT),
        ("  \n", R.EMPTY_OUTPUT),
        ("a dog with a hat", R.MISSING_REASONING),
        ("<answer>a</answer>", R.MISSING_REASONING),
        (GOOD.partition("<answer>")[0], R.MISSING_ANSWER),
        (GOOD.replace("</answer>", ""), R.UNFINISHED),
        (GOOD.replace("</reasoning>", ""), R.UNFINISHED),
        (GOOD + GOOD, R.REPEATED_TAG),
        (GOOD + "\n<answer>b</answer>", R.REPEATED_TAG),
        (GOOD.replace("<reasoning>", "<reasoning><reasoning>"), R.NESTED_TAG),
        ("<reasoning>Source: a <answer>b</answer></reasoning>", R.NESTED_TAG),
        ("<answer>b</answer><reasoning>Source: a</reasoning>", R.REORDERED_TAGS),
        ("</reasoning>Source: a<reasoning><answer>b</answer>", R.REORDERED_TAGS),
        (f"Sure! {GOOD}", R.TEXT_OUTSIDE),
        (f"{GOOD} Hope that helps.", R.TEXT_OUTSIDE),
        (GOOD.replace("\n<answer>", "\nso\n<answer>"), R.TEXT_OUTSIDE),
        (GOOD.replace("Operation: add a hat\n", ""), R.MISSING_FACET),
        (GOOD.replace("Source: ", "First, "), R.UNKNOWN_FACET),
        (GOOD.replace("\nInvariant", "\nDetails: a cat\nInvariant"), R.UNKNOWN_FACET),
        (GOOD.replace("\nInvariant", "\nSource: a cat\nInvariant"), R.REPEATED_FACET),
        (GOOD.replace("Source", "X").replace("Invariant", "Source").replace("X", "Invariant"), R.REORDERED_FACETS),
        (GOOD.replace("add a hat", ""), R.EMPTY_FACET),
        (GOOD.replace("a dog with a hat", " "), R.EMPTY_ANSWER),
        (GOOD.replace("add a hat", "add <b>a hat</b>"), R.STRAY_MARKUP),
        (GOOD.replace("a dog with a hat", "a <b>dog</b>"), R.STRAY_MARKUP),
        (GOOD.replace("a dog with a hat", "a dog\na hat"), R.STRAY_MARKUP),
        (GOOD.replace("a hat", "<|im_end|>"), R.PROMPT_LEAKAGE),
        (GOOD.replace("add a hat", "as the system prompt says"), R.PROMPT_LEAKAGE),
    ],
)
def test_everything_else_is_rejected_with_its_reason(output: str, reason: FormatReason) -> None:
    parsed = parse_trace(output, COMPOSED)
    assert isinstance(parsed, Malformed), parsed
    assert parsed.reason is reason
    assert parsed.detail


pieces = st.sampled_from(
    ["<reasoning>", "</reasoning>", "<answer>", "</answer>", "Source:", "Operation:", "Invariant:", "x", "\n", " "]
)


@given(st.lists(pieces, max_size=14).map("".join))
def test_no_output_breaks_the_parser(output: str) -> None:
    parsed = parse_trace(output, COMPOSED)
    assert isinstance(parsed, Trace | Malformed)


def test_every_task_has_its_family() -> None:
    assert [family_of(task).name for task in range(9)] == [
        "visual",
        "text",
        "text",
        "visual",
        "visual",
        "visual",
        "knowledge",
        "composed",
        "knowledge",
    ]


@given(traces(), st.lists(st.tuples(st.integers(0, 400), st.sampled_from(MARKS)), max_size=3))
def test_the_fast_path_parses_rendered_traces_like_the_parser(made: tuple[Family, Trace], marks: list[tuple[int, str]]) -> None:
    family, trace = made
    text = trace.render()
    for place, mark in marks:
        text = text[:place] + mark + text[place:]
    found = parse_trace(text, family)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parser, "_rendered", lambda name: re.compile(r"(?!)"))
        patch.setattr(parser, "_leak", parser._LEAKS.search)
        assert found == parse_trace(text, family)
    if isinstance(found, Trace):
        assert Trace.model_validate(found.model_dump()) == found
