"""Finds the decisive variables of a template. Values of all others can be inserted after a single rendering.

A variable that is printed by itself (``{{ query_text }}``, ``{{ query_text or "(none)" }}``), or only tested for being empty
(``{% if complaint %}``), affects only its own place in the text. It is decisive if it is filtered, compared, assigned, passed
on or printed in a block that processes its text. If includes are not fixed, all variables are decisive.
"""

from __future__ import annotations

from collections.abc import Iterable

from jinja2 import nodes


def decisive_variables(templates: Iterable[nodes.Template]) -> frozenset[str] | None:
    """Returns their names, for a template and all that it includes; None: all. Of the others only emptiness matters."""
    uses = _Uses()
    for template in templates:
        uses.statements(template.body)
    return None if uses.unknown else frozenset(uses.decisive)


class _Uses:
    def __init__(self) -> None:
        self.decisive: set[str] = set()
        self.unknown = False
        """Whether something is printed that this module does not see, or is processed after printing."""

    def statements(self, found: Iterable[nodes.Node]) -> None:
        for node in found:
            if isinstance(node, nodes.Output):
                for part in node.nodes:
                    self._output(part)
            elif isinstance(node, nodes.If):
                self._truth(node.test)
                self.statements([*node.body, *node.elif_, *node.else_])
            elif isinstance(node, nodes.Include):
                self.unknown |= not isinstance(node.template, nodes.Const) or not isinstance(node.template.value, str)
            else:
                self.unknown |= next(node.find_all(nodes.Include), None) is not None
                self._other(node)

    def _output(self, part: nodes.Expr) -> None:
        if isinstance(part, nodes.Or) and isinstance(part.right, nodes.Const):
            part = part.left
        if not isinstance(part, nodes.Name | nodes.TemplateData):
            self._other(part)

    def _truth(self, test: nodes.Node) -> None:
        if isinstance(test, nodes.And | nodes.Or):
            self._truth(test.left)
            self._truth(test.right)
        elif isinstance(test, nodes.Not):
            self._truth(test.node)
        elif not isinstance(test, nodes.Name):
            self._other(test)

    def _other(self, node: nodes.Node) -> None:
        if isinstance(node, nodes.Name):
            self.decisive.add(node.name)
        self.decisive.update(name.name for name in node.find_all(nodes.Name))
