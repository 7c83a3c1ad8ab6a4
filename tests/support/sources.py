"""Syntax trees of the project's own modules, parsed once for all tests that read the program."""

from __future__ import annotations

import ast
import functools
from pathlib import Path


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Every node of a module, the module itself first. Shared: do not change them."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
