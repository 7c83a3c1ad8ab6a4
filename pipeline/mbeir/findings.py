"""The findings of a check: each kind of problem per file, with its exact count and a few examples."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel
from rich.console import Group, RenderableType
from rich.text import Text


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Example(BaseModel):
    line: int | None
    message: str


class Finding(BaseModel):
    """All occurrences of one code in one file. `count` is exact; `hidden` occurrences are not among the examples."""

    severity: Severity
    code: str
    file: str
    count: int
    remedy: str
    examples: list[Example]
    hidden: int = 0


class Findings:
    """Collects occurrences. Memory is bounded, since only a few examples of each are kept."""

    def __init__(self, root: Path, max_examples: int) -> None:
        self._root, self._max_examples = root, max_examples
        self._findings: dict[tuple[str, str], Finding] = {}

    def add(
        self, severity: Severity, code: str, file: Path, message: str, remedy: str, *, line: int | None = None, count: int = 1
    ) -> None:
        name = str(file.relative_to(self._root)) if file.is_relative_to(self._root) else str(file)
        finding = self._findings.get((name, code))
        if finding is None:
            finding = Finding(severity=severity, code=code, file=name, count=0, remedy=remedy, examples=[])
            self._findings[name, code] = finding
        finding.count += count
        if len(finding.examples) < self._max_examples:
            finding.examples.append(Example(line=line, message=message))
        else:
            finding.hidden += count

    def __iter__(self) -> Iterator[Finding]:
        order = list(Severity)
        return iter(sorted(self._findings.values(), key=lambda f: (f.file, order.index(f.severity), f.code)))


class CheckResult(BaseModel):
    """The outcome of `check`."""

    root: str
    files: int
    findings: list[Finding]

    def total(self, severity: Severity) -> int:
        return sum(finding.count for finding in self.findings if finding.severity is severity)

    @property
    def ok(self) -> bool:
        return self.total(Severity.ERROR) == 0

    @property
    def verdict(self) -> str:
        counts = ", ".join(f"{self.total(severity):,} {severity}s" for severity in Severity)
        return f"{self.files} files: {counts}. " + (
            "Usable as it is." if self.ok else "Not usable until the errors are corrected."
        )


_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def render(result: CheckResult) -> RenderableType:
    """For the terminal: grouped by file, worst first."""
    lines: list[RenderableType] = []
    last = None
    for finding in result.findings:
        if finding.file != last:
            lines.append(Text(f"\n{finding.file}" if lines else finding.file, style="bold"))
            last = finding.file
        head = Text.assemble("  ", (finding.severity, _STYLES[finding.severity]), f" {finding.code}")
        lines.append(head.append(f" x {finding.count:,}" if finding.count > 1 else ""))
        lines += [Text(f"    {f'line {e.line}: ' if e.line else ''}{e.message}") for e in finding.examples]
        if finding.hidden:
            lines.append(Text(f"    … {finding.hidden:,} more", style="dim"))
        lines.append(Text(f"    → {finding.remedy}", style="dim"))
    return Group(*lines, Text(f"\n{result.verdict}" if lines else result.verdict, style="bold"))
