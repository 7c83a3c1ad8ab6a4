"""Which variables of a template are more than printed: values of the others may be put in after it was rendered, many times.

A variable that stands in an output by itself (``{{ query_text }}``, ``{{ query_text or "(none)" }}``), or is only asked whether
it is empty (``{% if complaint %}``), decides nothing but its own place in the text. One that is filtered, compared, assigned,
passed on or printed in a block that treats its text does more, and so does everything where includes are not fixed.
"""

from __future__ import annotations

from collections.abc import Iterable

from jinja2 import nodes


def decisive_variables(templates: Iterable[nodes.Template]) -> frozenset[str] | None:
    """Their names, of a template and all that it includes; None for any. Of others it only matters whether they are empty."""
    uses = _Uses()
    for template in templates:
        uses.statements(template.body)
    return None if uses.unknown else frozenset(uses.decisive)


class _Uses:
    def __init__(self) -> None:
        self.decisive: set[str] = set()
        self.unknown = False
        """Something is printed that is not seen here, or is treated after it was printed."""

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
