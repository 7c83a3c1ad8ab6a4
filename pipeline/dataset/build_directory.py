"""The layout of a build's directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.dataset.built_dataset import SETTINGS
from schemas.config import BuildConfig


@dataclass(frozen=True)
class Places:
    """Paths in one build's directory."""

    out: Path

    @property
    def dataset(self) -> Path:
        return self.out / "dataset"

    @property
    def work(self) -> Path:
        return self.out / "work"

    @property
    def progress(self) -> Path:
        return self.work / "progress.json"

    @property
    def settings(self) -> Path:
        return self.work / SETTINGS

    @property
    def finished(self) -> Path:
        return self.work / "finished.json"

    @property
    def logs(self) -> Path:
        """`build.log`, one file per actor, and what the servers print."""
        return self.work / "logs"

    def ledger(self, config: BuildConfig) -> str:
        return config.ledger.location or str(self.out / "ledger")
