"""The suite's results as they are kept: one file for each embedder and route."""

from __future__ import annotations

from pathlib import Path
from typing import Final, get_args

from pydantic import BaseModel

from pipeline.files.state import read_model
from schemas.training import Variant
from trainer.zero_shot.columns import Column
from trainer.zero_shot.contamination import PicturesRead

OWN_ROUTE: Final = {"trace": "adaptive", "direct": "bypass", "always-reason": "reason"}
"""Variant -> the route that it was trained for."""


class SuiteResults(BaseModel):
    """The contents of `results_file`: one embedder on the suite."""

    route: str
    variant: str
    columns: list[Column]
    pictures: dict[str, PicturesRead] = {}
    """With --near: what was opened for it, of the training and of each task."""

    @property
    def name(self) -> str:
        """As a table's column: the variant, with its route where that is not its own."""
        return self.variant if self.route == OWN_ROUTE.get(self.variant) else f"{self.variant}, {self.route}"


def suite_directory(run: Path, variant: str, route: str) -> Path:
    """Where a run's results are kept."""
    return run / "zero-shot" / f"{variant}-{route}"


def results_file(out: Path) -> Path:
    """Where `evaluate_suite` writes its results as JSON. out: `suite_directory`, or what the user named."""
    return out / "results.json"


def read_results(run: Path) -> list[SuiteResults]:
    """What is kept beside a run: TRACE first, then its controls. Raises InputError for a file that is damaged."""
    places = sorted(place for place in (run / "zero-shot").glob("*") if results_file(place).is_file())
    found = [
        read_model(results_file(place), SuiteResults, "remove it and run `mbeir-cot zero-shot run` again") for place in places
    ]
    order = get_args(Variant)
    return sorted(found, key=lambda one: (order.index(one.variant) if one.variant in order else len(order), one.route))
