"""The figures of reports as plotly JSON. Counting is done here, so that a page contains bars instead of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

BLUE: Final = "#4477aa"
TEAL: Final = "#44aa99"
AMBER: Final = "#ddaa33"
RED: Final = "#cc6677"
GREY: Final = "#999da6"
SERIES: Final = (BLUE, AMBER, TEAL, RED, "#aa4499", GREY, "#88ccee", "#117733")
"""Distinguishable by colour-blind readers (after Paul Tol)."""

Values = Sequence[float] | NDArray[Any]


def stacked(labels: Sequence[str], parts: Mapping[str, tuple[Values, str]], *, axis: str = "queries") -> str:
    """Horizontal bars; parts: name -> (a value per label, colour)."""
    figure = go.Figure()
    for name, (values, colour) in parts.items():
        figure.add_bar(y=list(labels), x=list(values), name=name, orientation="h", marker_color=colour)
    figure.update_layout(barmode="stack", height=max(280, 40 * len(labels) + 110), xaxis={"title": axis})
    figure.update_yaxes(autorange="reversed", automargin=True)
    return _json(figure)


def histogram(
    parts: Mapping[str, tuple[Values, str]],
    *,
    axis: str,
    bins: int = 40,
    span: tuple[float, float] | None = None,
    line: tuple[float, str] | None = None,
    log: bool = False,
) -> str:
    """Stacked histograms over one set of bins. line: (position, label). log: logarithmic axis of counts."""
    everything = np.concatenate([np.asarray(values, float) for values, _ in parts.values()] or [np.empty(0)])
    low, high = span or ((everything.min(), everything.max()) if len(everything) else (0.0, 1.0))
    if high <= low:
        high = low + 1
    if span is None and np.array_equal(everything, everything.round()):  # whole numbers: bins of whole numbers
        width = max(1, int(np.ceil((high - low + 1) / bins)))
        low, high = low - 0.5, low - 0.5 + width * np.ceil((high - low + 1) / width)
        bins = round((high - low) / width)
    edges = np.linspace(low, high, bins + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    figure = go.Figure()
    for name, (values, colour) in parts.items():
        counts, _ = np.histogram(np.asarray(values, float), edges)
        figure.add_bar(x=centres.round(6).tolist(), y=counts.tolist(), name=name, marker_color=colour)
    figure.update_layout(barmode="stack" if not log else "overlay", bargap=0.03, height=320)
    figure.update_xaxes(title=axis, range=[low, high])
    figure.update_yaxes(title="queries" + (" (log)" if log else ""), type="log" if log else "linear")
    if line is not None:
        figure.add_vline(x=line[0], line_dash="dash", line_color=GREY, annotation_text=line[1])
    return _json(figure)


def flow(links: Sequence[tuple[str, str, float]], colours: Mapping[str, str]) -> str:
    """A Sankey diagram; links: (from, to, queries)."""
    names = list(dict.fromkeys(name for source, target, _ in links for name in (source, target)))
    at = {name: i for i, name in enumerate(names)}
    figure = go.Figure(
        go.Sankey(
            node={
                "label": names,
                "color": [colours.get(name, GREY) for name in names],
                "pad": 16,
                "thickness": 16,
                "line": {"width": 0},
            },
            link={
                "source": [at[source] for source, _, _ in links],
                "target": [at[target] for _, target, _ in links],
                "value": [value for _, _, value in links],
                "color": [_faint(colours.get(target, GREY)) for _, target, _ in links],
            },
            valueformat=",.0f",
        )
    )
    figure.update_layout(height=400)
    return _json(figure)


def lines(series: Mapping[str, tuple[Values, Values]], *, x: str, y: str, log: bool = False) -> str:
    """series: name -> (x, y)."""
    figure = go.Figure()
    for (name, (xs, ys)), colour in zip(series.items(), SERIES * (1 + len(series) // len(SERIES)), strict=False):
        figure.add_scatter(x=list(xs), y=list(ys), name=name, mode="lines", line={"color": colour, "width": 2})
    figure.update_layout(height=340)
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y, type="log" if log else "linear")
    return _json(figure)


def grouped(labels: Sequence[str], series: Mapping[str, Values], *, axis: str) -> str:
    """Vertical bars side by side."""
    figure = go.Figure()
    for (name, values), colour in zip(series.items(), SERIES, strict=False):
        figure.add_bar(x=list(labels), y=list(values), name=name, marker_color=colour)
    figure.update_layout(barmode="group", height=380)
    figure.update_yaxes(title=axis)
    figure.update_xaxes(automargin=True)
    return _json(figure)


def _json(figure: go.Figure) -> str:
    figure.update_layout(
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        template=None,
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    text: str = figure.to_json()
    return text


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.35)"
