"""A training's metrics, one line per step: `metrics.jsonl`, TensorBoard and trackers if the settings ask for them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pipeline.files.durable import replace_text
from schemas.errors import ConfigError
from schemas.training import TrainConfig
from trainer.training.step import StepLosses

_PROJECT: Final = "mbeir-cot"


class MetricsLog:
    """`metrics.jsonl`, truncated to the step from which the run resumes."""

    def __init__(self, directory: Path, step: int, tensorboard: bool, *, trackers: Sequence[Any] = ()) -> None:
        """`trackers`: from `start_trackers`."""
        self._trackers = tuple(trackers)
        self.path = directory / "metrics.jsonl"
        if self.path.is_file():
            kept = []
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:  # torn by a kill
                    break
                if entry["step"] > step:
                    break
                kept.append(line)
            replace_text(self.path, "".join(f"{line}\n" for line in kept))
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (an optional dependency)

            self._board = SummaryWriter(str(directory / "tensorboard"))

    def write(self, step: int, losses: StepLosses, *, lr: float, norm: float, rate: float, share: float) -> None:
        """Call after each step. norm: the gradient's, before clipping. rate: queries/s. share: of queries that reason."""
        values = losses._asdict() | {"lr": lr, "gradient": norm, "queries_per_s": rate, "reasoning": share}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | {name: float(f"{value:.7g}") for name, value in values.items()}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        for tracker in self._trackers:
            tracker.log(values, step=step)

    def close(self) -> None:
        """What trackers have not sent is sent."""
        for tracker in self._trackers:
            tracker.finish()


def start_trackers(config: TrainConfig, variant: str, directory: Path) -> list[Any]:
    """accelerate's trackers of `config.trackers`, with the run's settings. Raises ConfigError for one that is not there."""
    if not config.trackers:
        return []
    from accelerate.state import PartialState  # noqa: PLC0415 (for this alone)
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers  # noqa: PLC0415

    PartialState()  # trackers ask it which process is the first
    if unknown := [name for name in config.trackers if name not in LOGGER_TYPE_TO_CLASS]:
        raise ConfigError(f"trackers: {', '.join(unknown)}: accelerate has none", f"one of {', '.join(LOGGER_TYPE_TO_CLASS)}")
    there = [str(name) for name in filter_trackers(list(config.trackers), directory)]
    if absent := [name for name in config.trackers if name not in there]:
        raise ConfigError(f"trackers: {', '.join(absent)} is not installed", f"pip install {' '.join(absent)}, or leave it out")
    project = os.environ.get("WANDB_PROJECT", _PROJECT)
    started = []
    for name in there:
        kind = LOGGER_TYPE_TO_CLASS[name]
        tracker = kind(project, str(directory)) if kind.requires_logging_directory else kind(project)
        tracker.start()
        tracker.store_init_configuration({"variant": variant, **_flat(config.model_dump(mode="json"))})
        started.append(tracker)
    return started


def _flat(settings: dict[str, Any], before: str = "") -> dict[str, Any]:
    """`{"data": {"mbeir": x}}` as `{"data.mbeir": x}`; lists as text: what every tracker takes."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[before + name] = value if isinstance(value, bool | int | float) else str(value)
    return found
