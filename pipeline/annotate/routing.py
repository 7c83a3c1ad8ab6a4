"""Which queries reason: a pure function of the query, its assessment and the configured policy."""

from __future__ import annotations

from typing import Final

from schemas.config import RouteConfig
from schemas.mbeir import DatasetTask, Modality
from schemas.record import Route, RoutePolicy

REASONING_DATASETS: Final = frozenset({"cirr", "fashioniq", "oven", "infoseek"})
"""The datasets of the paper's reasoning subset."""


def route(task: DatasetTask, assessment: float | None, config: RouteConfig, utility: float | None = None) -> Route:
    """`assessment` is P(complex); may be None if the policy does not need it (ValueError otherwise).

    utility: measured of the query's trace; None where it was not.
    """
    match config.policy:
        case RoutePolicy.ASSESSOR:
            if assessment is None:
                raise ValueError("the policy 'assessor' needs an assessment")
            reasons = assessment >= config.threshold
        case RoutePolicy.BY_DATASET:
            reasons = task.dataset in REASONING_DATASETS
        case RoutePolicy.BY_MODALITY:
            reasons = task.query_modality is Modality.IMAGE_TEXT
        case RoutePolicy.UTILITY:
            reasons = utility is not None and utility > config.utility_threshold
    return Route.REASONING if reasons else Route.BYPASS
