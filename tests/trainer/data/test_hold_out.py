"""`data.hold_out`: dataset-tasks that are not trained on, and are marked when they are scored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from mbeir_cot.commands.train import console
from mbeir_cot.evaluation_tables import show_results
from schemas.errors import ConfigError
from schemas.training import DataSettings, TrainConfig
from trainer.data.dataset import Records
from trainer.embedding.queries import QueryCosts
from trainer.evaluation.results import Result, TaskResult, as_json
from trainer.training.run_directory import run_conditions


def held(config: TrainConfig, *names: str) -> TrainConfig:
    data = DataSettings.model_validate(config.data.model_dump() | {"hold_out": names})
    return config.model_copy(update={"data": data})


def test_rows_are_left_out_and_other_runs_keep_their_identity(config: TrainConfig) -> None:
    records = Records.load(config.data.dataset)
    kept = records.without(("nights_task4", "cirr_task7"))
    assert set(records.groups(repeat=False)) - set(kept.groups(repeat=False)) == {"nights_task4", "cirr_task7"}
    assert records.without(()) is records

    def data(config: TrainConfig) -> dict[str, Any]:
        found: dict[str, Any] = run_conditions(config, "trace", records, 1)["settings"]["data"]
        return found

    assert "hold_out" not in data(config)
    assert data(held(config, "nights_task4"))["hold_out"] == ["nights_task4"]


def test_names_that_leave_nothing_out_are_refused(config: TrainConfig) -> None:
    with pytest.raises(ValidationError, match="no dataset-task of M-BEIR"):
        held(config, "nights")
    records = Records.load(config.data.dataset)
    with pytest.raises(ConfigError, match="has no record of mscoco_task5"):
        records.without(("mscoco_task5",))
    with pytest.raises(ConfigError, match="leaves no record"):
        records.without(tuple(records.groups(repeat=False)))


def test_a_table_has_them_in_a_group_of_their_own() -> None:
    costs = QueryCosts.of([], 0.0)
    tasks = [TaskResult(name, 5, value, None, costs) for name, value in (("nights_task4", 0.2), ("cirr_task7", 0.6))]
    result = Result("trace", tasks)
    with console.capture() as shown:
        show_results(console, [result], "val", ("nights_task4",))
    lines = [line for line in shown.get().splitlines() if "nights" in line or "cirr" in line or "mean" in line]
    assert ["cirr_task7" in line for line in lines[:2]] == [True, False]
    assert "held out: nights_task4" in lines[1]
    assert "20.0" in next(line for line in lines if "mean held out" in line)
    assert "60.0" in next(line for line in lines if "mean trained" in line)
    marked = json.loads(as_json([result], ("nights_task4",)))[0]["tasks"]
    assert [one.get("held_out") for one in marked] == [True, None]
    assert "held_out" not in as_json([result])
