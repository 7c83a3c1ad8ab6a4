"""How well a verifier's confidences tell right traces from wrong ones in a pocket build, for several ways to combine them.

Counted are the last traces that reached the verifier, kept or not. Ways to combine are compared at one price: the share of
right traces that the threshold loses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import exp, log
from pathlib import Path
from typing import Any, Final

from pipeline.traces.families import FAMILIES, family_of
from pocket.evaluation.build_quality import answer_of, dataset_rows, is_right, truth_of
from pocket.evaluation.skills import auc
from pocket.world.ground_truth import load_truth

LOST: Final = 0.05
"""Share of right traces that a threshold may lose."""
_LEAST: Final = 1e-9


def verifier_quality(build: Path, truth_directory: Path, split: str = "train") -> dict[str, Any]:
    """Way to combine -> traces, AUC, recall of wrong traces at `LOST`; by family; and the requests and tokens of a record.

    `answer`: the confidence in the answer (all there is with `verify.form: single`). `least`, `product`: of the answer's and
    the facets'. Each facet by itself as well.
    """
    truths = {f"{one.dataset_task}/{one.qid}": one for one in load_truth(truth_directory).queries if one.split == split}
    scored: list[tuple[str, bool, dict[str, float]]] = []
    for row in (*dataset_rows(build, "data"), *dataset_rows(build, "rejected")):
        confidence = row["verdict"]["confidence"] if row.get("verdict") else row.get("confidence")
        if confidence is None or row.get("reason") == "near_duplicate":  # its twin is there
            continue
        right = is_right(row.get("answer") or answer_of(row), truth_of(row, truths))
        scored.append((family_of(row["task_id"]).name, right, _scores(confidence, row["facet_confidences"] or [])))
    figures: dict[str, Any] = {
        name: [_figure(way, [one for one in scored if name in ("all", one[0])]) for way in _ways(scored, name)]
        for name in ("all", *FAMILIES)
    }
    return {"families": figures, "cost": _cost(build)}


def recall_at(scores: Sequence[float], right: Sequence[bool], lost: float = LOST) -> tuple[float, float]:
    """(threshold, recall): below the threshold lie at most `lost` of the right ones, and `recall` of the wrong ones."""
    good = sorted(score for score, is_good in zip(scores, right, strict=True) if is_good)
    bad = [score for score, is_good in zip(scores, right, strict=True) if not is_good]
    threshold = good[int(lost * len(good))]
    return threshold, sum(score < threshold for score in bad) / len(bad)


def _scores(answer: float, facets: Sequence[dict[str, Any]]) -> dict[str, float]:
    found = {"answer": answer}
    if facets:
        parts = [answer, *(one["confidence"] for one in facets)]
        found |= {"least": min(parts), "product": exp(sum(log(max(_LEAST, part)) for part in parts))}
        found |= {f"facet {one['name']}": one["confidence"] for one in facets}
    return found


def _ways(scored: list[tuple[str, bool, dict[str, float]]], name: str) -> list[str]:
    return list(dict.fromkeys(way for family, _, scores in scored if name in ("all", family) for way in scores))


def _figure(way: str, scored: list[tuple[str, bool, dict[str, float]]]) -> dict[str, Any]:
    chosen = [(scores[way], right) for _, right, scores in scored if way in scores]
    scores, right = [score for score, _ in chosen], [is_good for _, is_good in chosen]
    figure: dict[str, Any] = {"way": way, "traces": len(chosen), "wrong": right.count(False)}
    if True in right and False in right:
        threshold, recall = recall_at(scores, right)
        figure |= {"auc": round(auc(scores, right), 4), "threshold": round(threshold, 4), "recall": round(recall, 4)}
    return figure


def _cost(build: Path) -> dict[str, float]:
    """Of records that reason, from their provenance."""
    rows = [row for row in dataset_rows(build, "data") if row["route"] == "reasoning"]
    asked = Counter[str]()
    for row in rows:
        asked["questions to the verifier"] += (1 + len(row["facet_confidences"] or [])) if row["verdict"] else 0
        asked["prompt tokens"] += row["provenance"]["prompt_tokens"]
        asked["completion tokens"] += row["provenance"]["completion_tokens"]
    return {name: round(count / max(1, len(rows)), 2) for name, count in asked.items()}
