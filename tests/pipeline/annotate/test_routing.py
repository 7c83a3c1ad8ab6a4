from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.annotate.routing import route
from pipeline.traces.judgements import needs_assessment
from schemas.config import RouteConfig
from schemas.mbeir import DATASET_TASKS, DatasetTask
from schemas.record import Route, RoutePolicy

CIRR, NIGHTS, WEBQA = DatasetTask("cirr", 7), DatasetTask("nights", 4), DatasetTask("webqa", 1)


def test_the_assessor_routes_by_probability() -> None:
    config = RouteConfig(policy=RoutePolicy.ASSESSOR, threshold=0.4)
    assert needs_assessment(config)
    assert [route(NIGHTS, p, config) for p in (0.39, 0.4, 1.0)] == [Route.BYPASS, Route.REASONING, Route.REASONING]
    with pytest.raises(ValueError, match="needs an assessment"):
        route(CIRR, None, config)


def test_by_dataset_is_the_papers_split() -> None:
    config = RouteConfig(policy=RoutePolicy.BY_DATASET)
    assert not needs_assessment(config)
    reasoning = {task.dataset for task in DATASET_TASKS if route(task, None, config) is Route.REASONING}
    assert reasoning == {"cirr", "fashioniq", "oven", "infoseek"}


def test_a_measured_utility_decides_and_without_one_a_query_bypasses() -> None:
    config = RouteConfig(policy=RoutePolicy.UTILITY, utility=Path("utility.parquet"), utility_threshold=0.1)
    assert not needs_assessment(config)
    routes = [route(CIRR, None, config, utility) for utility in (None, -0.2, 0.1, 0.11)]
    assert routes == [Route.BYPASS, Route.BYPASS, Route.BYPASS, Route.REASONING]
    with pytest.raises(ValidationError, match=r"needs route\.utility"):
        RouteConfig(policy=RoutePolicy.UTILITY)


def test_by_modality_takes_queries_of_image_and_text() -> None:
    config = RouteConfig(policy=RoutePolicy.BY_MODALITY, always_assess=True)
    assert needs_assessment(config)
    assert [route(task, 0.0, config) for task in (CIRR, NIGHTS, WEBQA)] == [Route.REASONING, Route.BYPASS, Route.BYPASS]
