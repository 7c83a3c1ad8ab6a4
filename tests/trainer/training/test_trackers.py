"""Experiment trackers get what `metrics.jsonl` gets, through accelerate's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate import tracking

from schemas.errors import ConfigError
from schemas.training import TrainConfig
from trainer.training.metrics_log import MetricsLog, start_trackers
from trainer.training.step import StepLosses


class Kept(tracking.GeneralTracker):
    """A tracker that keeps what it is told."""

    name = "kept"
    requires_logging_directory = False
    said: ClassVar[list[tuple[str, Any]]] = []

    def __init__(self, run_name: str) -> None:
        super().__init__()
        self.said.append(("began", run_name))

    @property
    def tracker(self) -> list[Any]:
        return self.said

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.said.append(("settings", values))

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.said.append((f"step {step}", values))

    def finish(self) -> None:
        self.said.append(("finished", None))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "kept", Kept)
    Kept.said.clear()
    yield
    Kept.said.clear()


def test_a_tracker_gets_settings_and_steps(config: TrainConfig, tmp_path: Path, known: None) -> None:
    trackers = start_trackers(config.model_copy(update={"trackers": ("kept",)}), "trace", tmp_path)
    log = MetricsLog(tmp_path, 0, False, trackers=trackers)
    losses = StepLosses(*(0.5 for _ in StepLosses._fields))
    log.write(1, losses, lr=0.1, norm=1.0, rate=2.0, share=0.25)
    log.close()
    assert [what for what, _ in Kept.said] == ["began", "settings", "step 1", "finished"]
    settings = Kept.said[1][1]
    assert settings["variant"] == "trace"
    assert settings["optimiser.lr"] == config.optimiser.lr
    assert all(isinstance(value, str | bool | int | float) for value in settings.values())
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert {"step": 1, **Kept.said[2][1]} == line


def test_trackers_that_are_not_there_are_named(config: TrainConfig, tmp_path: Path) -> None:
    assert start_trackers(config, "trace", tmp_path) == []
    with pytest.raises(ConfigError, match="accelerate has none"):
        start_trackers(config.model_copy(update={"trackers": ("nonesuch",)}), "trace", tmp_path)
    missing = next(name for name in ("wandb", "trackio", "mlflow") if name not in map(str, tracking.get_available_trackers()))
    with pytest.raises(ConfigError, match=f"{missing} is not installed"):
        start_trackers(config.model_copy(update={"trackers": (missing,)}), "trace", tmp_path)
