"""A training's metrics, one line per step: `metrics.jsonl`, and TensorBoard if the settings ask for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.files.durable import replace_text
from trainer.training.step import StepLosses


class MetricsLog:
    """`metrics.jsonl`, truncated to the step from which the run resumes."""

    def __init__(self, directory: Path, step: int, tensorboard: bool) -> None:
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
