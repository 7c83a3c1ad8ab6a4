"""The page of a report: figures, tables and a browser of examples, in one file that needs no network.

The content is plain data; the template, style and script beside this module know nothing of datasets or runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Fact:
    """One large number at the top."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """A plotly figure as JSON, with a sentence on what it shows."""

    title: str
    note: str
    figure: str
    wide: bool = False
    tall: bool = False
    """As high as two other charts, which stand beside it."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of text cells. Columns after the first are aligned right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt and its raw answer, shown on demand."""

    title: str
    prompt: str
    answer: str


@dataclass(slots=True)
class Example:
    """One entry of the browser. Pictures are keys of the page's `pictures`.

    tags: values for the filters. lines: (label, text) pairs, in order; `strong` is highlighted below them.
    """

    id: str
    tags: Mapping[str, str]
    instruction: str
    text: str
    picture: str = ""
    lines: Sequence[tuple[str, str]] = ()
    strong: str = ""
    badges: Sequence[str] = ()
    positive_text: str = ""
    positive_picture: str = ""
    positive_name: str = "positive"
    small: str = ""
    exchanges: Sequence[Exchange] = ()


@dataclass(slots=True)
class Page:
    """title, banner (empty: none), lead: a sentence. pictures: key -> data URL."""

    title: str
    banner: str
    lead: str
    facts: Sequence[Fact]
    charts: Sequence[Chart] = ()
    grids: Sequence[Grid] = ()
    examples: Sequence[Example] = ()
    examples_note: str = ""
    pictures: Mapping[str, str] = field(default_factory=dict)


def render(page: Page) -> str:
    """The whole file."""
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(_HERE), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=True
    )
    filters = list(dict.fromkeys(name for example in page.examples for name in example.tags))
    return environment.get_template("report.html.jinja").render(
        page=page,
        filters=filters,
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),  # noqa: S704 (our own files)
        script=Markup((_HERE / "report.js").read_text(encoding="utf-8")),  # noqa: S704
        plotly=Markup(_plotly()) if page.charts else "",  # noqa: S704
        charts=embedded([json.loads(chart.figure) for chart in page.charts]),
        examples=embedded([asdict(example) for example in page.examples]),
        pictures=embedded(dict(page.pictures)),
    )


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # noqa: PLC0415 (4.8 MB)

    script: str = get_plotlyjs()
    return script


def embedded(value: Any) -> Markup:
    """JSON that cannot end the surrounding script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))  # noqa: S704
