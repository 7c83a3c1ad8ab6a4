"""Imports run one way: between packages, and between the sub-packages of each."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import PLACES
from tests.support.sources import nodes

ROOT: Final = Path(__file__).parents[1]
PACKAGES: Final = ("schemas", "prompts", "data_cards", "pipeline", "trainer", "pocket", "mbeir_cot", "bench")
"""Each may import only those before it."""
INSIDE: Final = {
    "pipeline": (
        "files", "progress_meter", "config", "traces", "mbeir", "ledger", "teacher", "dataset", "serving", "annotate", "report",
        "hub", "export", "build",
    ),
    "trainer": ("data", "model", "embedding", "retrieval", "training", "evaluation", "zero_shot", "service", "release"),
    "pocket": ("world", "curriculum", "training", "evaluation"),
}  # fmt: skip
"""The same for the sub-packages of a package."""
MOST_ENTRIES: Final = {"pipeline": 15, "trainer": 9}


def modules(package: str) -> Iterator[tuple[Path, list[str]]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        yield path, list(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, dotted name) for all imports of a module, at any level."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from ((node.lineno, [*node.module.split("."), alias.name]) for alias in node.names)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_imports_one_above_it(package: str) -> None:
    above = PACKAGES[PACKAGES.index(package) + 1 :]
    back = [
        f"{path}:{line} imports {'.'.join(name)}"
        for path, _ in modules(package)
        for line, name in imports(path)
        if name[0] in above
    ]
    assert not back
    assert not [path for path, _ in modules(package) for _, name in imports(path) if name[0] == "tests"]


@pytest.mark.parametrize("package", INSIDE)
def test_no_subpackage_imports_one_above_it(package: str) -> None:
    order = INSIDE[package]
    subpackages = {
        path.stem
        for path in (ROOT / package).iterdir()
        if (path.is_dir() and (path / "__init__.py").exists()) or path.suffix == ".py"
    }
    assert subpackages - {"__init__", "api"} == set(order) & subpackages, "a new sub-package: add it to the order"
    back = [
        f"{path}:{line} imports {'.'.join(name)}"
        for path, parts in modules(package)
        if parts[1] in order
        for line, name in imports(path)
        if name[0] == package and len(name) > 1 and name[1] in order and order.index(name[1]) > order.index(parts[1])
    ]
    assert not back


@pytest.mark.parametrize(("package", "most"), MOST_ENTRIES.items())
def test_a_package_has_few_entries(package: str, most: int) -> None:
    entries = [path for path in (ROOT / package).iterdir() if path.name not in ("__init__.py", "__pycache__", "py.typed")]
    assert len(entries) <= most


def test_the_architecture_page_names_every_module_once() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tables = re.findall(r"^`([\w/]+/)`\n\n\| module \|.*\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    named = [folder + name for folder, rows in tables for name in re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE)]
    there = [
        "/".join(parts)
        for package in ("mbeir_cot", "schemas", "pipeline", "trainer", "pocket")
        for _, parts in modules(package)
        if parts[-1] != "__init__"
    ]
    assert sorted(named) == sorted(there)
    assert len(re.findall(r"^\| module \|", page, re.MULTILINE)) == len(tables)


@pytest.mark.parametrize("package", INSIDE)
def test_the_architecture_page_states_the_order_of_subpackages(package: str) -> None:
    assert " → ".join(INSIDE[package]) in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


MOST_POSITIONAL: Final = 5


def test_no_function_takes_many_positional_arguments() -> None:
    """Two exceptions: commands, which typer calls, and a spawned process, which gets a tuple."""
    many = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for package in PACKAGES[:-2]
        for path, _ in modules(package)
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and len([one for one in node.args.posonlyargs + node.args.args if one.arg not in ("self", "cls")]) > MOST_POSITIONAL
    ]
    assert [one.split(" ")[1] for one in many] == ["_process"], many


MOST_LINES: Final = 300


def test_a_file_is_short_or_says_why_not() -> None:
    """A docstring with "Long because ..." excuses it."""
    long = [
        str(path.relative_to(ROOT))
        for package in (*PACKAGES, "tests")
        for path, _ in modules(package)
        if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES
        and "Long because" not in (ast.get_docstring(nodes(path)[0]) or "")  # type: ignore[arg-type]
    ]
    assert not long


def test_the_files_that_start_first_exist() -> None:
    assert [path for path in PLACES if not path.is_file()] == []
