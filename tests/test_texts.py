"""Foreign texts: every text file is read and written as UTF-8, and nothing that rich prints is taken for markup."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sources import nodes

ROOT = Path(__file__).parents[1]
PACKAGES = ("mbeir_cot", "pipeline", "trainer", "schemas", "prompts", "pocket", "data_cards", "bench", "scripts")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
PRINTING = [path for path in MODULES if path.parts[len(ROOT.parts)] not in ("bench", "scripts")]


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in nodes(path) if isinstance(node, ast.Call))


def name_of(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id if isinstance(call.func, ast.Name) else ""


def opens_text(call: ast.Call) -> bool:
    """Whether the call opens a text file without naming the encoding."""
    name, given = name_of(call), {keyword.arg for keyword in call.keywords}
    if "encoding" in given:
        return False
    if name == "read_text":
        return not call.args
    if name == "write_text":
        return len(call.args) < 2
    if name in ("run", "Popen", "check_output"):
        return bool(given & {"text", "universal_newlines"})
    if name not in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile", "TextIOWrapper"):
        return False
    at = 0 if isinstance(call.func, ast.Attribute) and name == "open" else 1
    mode = next((k.value for k in call.keywords if k.arg == "mode"), call.args[at] if len(call.args) > at else None)
    if mode is None:
        return isinstance(call.func, ast.Name) and name == "open"
    text = mode.value if isinstance(mode, ast.Constant) else None
    return isinstance(text, str) and set(text) <= set("rwax+t") and len(text) <= 3


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("p.read_text()", True),
        ("p.read_text(encoding='utf-8')", False),
        ("open(p)", True),
        ("p.open('a')", True),
        ("p.open('rb')", False),
        ("subprocess.run(c, text=True)", True),
        ("Image.open(p)", False),
    ],
)
def test_the_rule_finds_unspecified_encodings(source: str, found: bool) -> None:
    (call,) = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)][:1]
    assert opens_text(call) is found


def test_every_text_file_names_its_encoding() -> None:
    found = [f"{path.relative_to(ROOT)}:{call.lineno}" for path in MODULES for call in calls(path) if opens_text(call)]
    assert not found


_TAKES_MARKUP = frozenset({"print", "rule", "status", "add_row", "update"})
_CONSOLES = frozenset({"console", "errors", "status", "table", "hits", "costs", "shown"})
_RENDERABLES = frozenset({"Table", "Group", "Renderables", "Rule"})


def rendered(path: Path) -> Iterator[ast.expr]:
    """Yields what rich reads as markup: arguments of its calls, and what functions yield for a group."""
    for node in nodes(path):
        if isinstance(node, ast.Call):
            yield from markup_arguments(node)
        elif isinstance(node, ast.FunctionDef) and "RenderableType" in ast.unparse(node.returns or ast.Constant(None)):
            yield from (inner.value for inner in ast.walk(node) if isinstance(inner, ast.Yield) and inner.value is not None)


def markup_arguments(call: ast.Call) -> list[ast.expr]:
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    called = isinstance(owner, ast.Call) and name_of(owner) == "console"
    named = isinstance(owner, ast.Name) and owner.id in _CONSOLES
    takes = name_of(call) in _RENDERABLES or (name_of(call) in _TAKES_MARKUP and (called or named))
    return call.args if takes else []


def unescaped(argument: ast.expr) -> Iterator[str]:
    """Yields values that are interpolated into markup and neither escaped nor formatted numbers."""
    if isinstance(argument, ast.Attribute):  # a cell, whose text may be foreign
        yield ast.unparse(argument)
    for part in _formatted(argument):
        safe = part.format_spec is not None or (isinstance(part.value, ast.Call) and name_of(part.value) == "escape")
        if not safe and not isinstance(part.value, ast.Name | ast.IfExp):
            yield ast.unparse(part.value)
        if not safe and isinstance(part.value, ast.Name) and part.value.id not in _OWN:
            yield part.value.id


_OWN = frozenset({"shown", "remedy", "each", "place", "dataset", "result", "confidence"})
"""Names of texts that the lines above compose and escape."""


def _formatted(node: ast.AST) -> Iterator[ast.FormattedValue]:
    if isinstance(node, ast.Call) and name_of(node) in ("escape", "Text"):
        return
    if isinstance(node, ast.FormattedValue):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from _formatted(child)


def test_foreign_texts_are_escaped_when_printed() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{argument.lineno}: {text}"
        for path in PRINTING
        for argument in rendered(path)
        for text in unescaped(argument)
    ]
    assert not found


def test_the_rule_finds_unescaped_texts(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    for source in (
        "console.print(f'[dim]{query.text}[/]')",
        "Group(f'[dim]{query.text}[/]')",
        "def lines() -> Iterator[RenderableType]:\n    yield f'[dim]{query.text}[/]'",
    ):
        path.write_text(source, encoding="utf-8")
        assert [text for argument in rendered(path) for text in unescaped(argument)] == ["query.text"]


def test_consoles_are_made_in_one_place() -> None:
    made = {path.relative_to(ROOT).as_posix() for path in PRINTING for call in calls(path) if name_of(call) == "Console"}
    assert made == {"mbeir_cot/printing.py", "pipeline/progress_meter.py", "pipeline/annotate/build_progress.py"}
