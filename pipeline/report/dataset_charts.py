"""The charts of a build's report: where queries went, and how assessments, traces and verdicts are distributed."""

from __future__ import annotations

from collections import defaultdict

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.report.chart_drawing import AMBER, BLUE, GREY, RED, TEAL, flow, histogram, stacked
from pipeline.report.page import Chart
from schemas.manifest import Manifest


def build_charts(manifest: Manifest, rows: pa.Table) -> list[Chart]:
    """rows: the records, with route, assessment, verdict, reasoning and answer."""
    tasks = manifest.tasks
    labels = [f"{task.dataset} task {task.task_id}" for task in tasks]
    parts = {
        "reasoning": ([task.reasoning for task in tasks], BLUE),
        "bypass": ([task.bypass for task in tasks], TEAL),
        "rejected": ([task.rejections for task in tasks], RED),
    }
    charts = [
        Chart(
            "From queries to records", "Where every query went; thickness is the number of queries.", _flow(manifest), wide=True
        ),
        Chart("Routes and yield", "Records by route, and rejections, of each dataset-task.", stacked(labels, parts), tall=True),
    ]
    thinks = pc.equal(rows["route"], "reasoning")
    assessed = rows.filter(pc.is_valid(rows["assessment"]))
    if len(assessed):
        of = {
            route: assessed.filter(pc.equal(assessed["route"], route))["assessment"].to_numpy()
            for route in ("reasoning", "bypass")
        }
        threshold = float(manifest.config["route"]["threshold"])
        charts.append(
            Chart(
                "P(complex)",
                "The teacher's assessment of the records' queries, and the threshold that decides their routes. Counts are on "
                "a logarithmic axis: a confident teacher's values crowd at the ends.",
                histogram(
                    {"reasoning": (of["reasoning"], BLUE), "bypass": (of["bypass"], TEAL)},
                    axis="P(complex)",
                    span=(0.0, 1.0),
                    line=(threshold, f"threshold {threshold:g}"),
                    log=True,
                ),
            )
        )
    reasoned = rows.filter(thinks)
    if len(reasoned):
        words = [len(text.split()) for text in reasoned["reasoning"].to_pylist()]
        answers = [len(text.split()) for text in reasoned["answer"].to_pylist()]
        charts.append(
            Chart(
                "Lengths of traces",
                "Words of the reasoning and of the answer.",
                histogram({"answer": (answers, AMBER), "reasoning": (words, BLUE)}, axis="words"),
            )
        )
        confidences = [verdict["confidence"] for verdict in reasoned["verdict"].to_pylist() if verdict is not None]
        if confidences:
            threshold = float(manifest.config["verify"]["threshold"])
            charts.append(
                Chart(
                    "Verifier's confidence",
                    "Of the traces that were kept; those at or below the threshold are among the rejections.",
                    histogram(
                        {"kept": (confidences, BLUE)},
                        axis="P(yes)",
                        span=(0.0, 1.0),
                        line=(threshold, f"threshold {threshold:g}"),
                    ),
                )
            )
    return charts


def _flow(manifest: Manifest) -> str:
    """queries -> routes -> (screens) -> (verify) -> records, with the rejections of each step."""
    stages: dict[str, int] = defaultdict(int)
    for task in manifest.tasks:
        for reason, count in task.rejected.items():
            stages[reason.split(":")[0]] += count
    reasoning = sum(task.reasoning for task in manifest.tasks)
    bypass = sum(task.bypass for task in manifest.tasks)
    early = stages["input"] + stages["assess"]
    verified = reasoning + stages["verify"]
    screened = verified + stages["screen"]
    written = screened + stages["reason"]
    verify = manifest.verifier is not None
    links = [
        ("queries", "to reason", written),
        ("queries", "bypass", bypass),
        ("queries", "rejected", early),
        ("to reason", "well-formed", screened),
        ("to reason", "rejected", stages["reason"]),
        ("well-formed", "screened" if verify else "records", verified),
        ("well-formed", "rejected", stages["screen"]),
        *([("screened", "records", reasoning), ("screened", "rejected", stages["verify"])] if verify else []),
        ("bypass", "records", bypass),
    ]
    colours = {
        "to reason": BLUE,
        "well-formed": BLUE,
        "screened": BLUE,
        "bypass": TEAL,
        "rejected": RED,
        "queries": GREY,
    }
    return flow([link for link in links if link[2]], colours | {"records": AMBER})
