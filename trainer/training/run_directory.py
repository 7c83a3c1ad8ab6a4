"""The directory of a run: where its parts lie, and what it was fitted with, so that nothing else goes on in it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.files.atomic_directory import replace_directory, staging_path
from pipeline.files.durable import replace_text
from schemas.errors import ConfigError
from schemas.training import TrainConfig, Variant
from trainer.data.dataset import Records
from trainer.model.embedder import Embedder

_FREE: Final = {"out", "variants", "device", "checkpoint", "adaptive", "evaluation", "tensorboard"}
"""Settings that may change between two runs of the same training."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Of one variant, below the config's `out`."""

    out: Path
    variant: Variant

    @property
    def path(self) -> Path:
        return self.out / self.variant

    @property
    def identity(self) -> Path:
        return self.path / "run.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def finished(self) -> bool:
        return (self.model / "finished.json").is_file()

    def log(self, rank: int) -> Path:
        """The log file of a process; the first one's is that of the training."""
        return self.out / ("train.log" if rank == 0 else f"train-{rank}.log")

    def claim(self, identity: dict[str, Any]) -> None:
        """Writes what this run is; raises ConfigError where the directory holds another one."""
        if self.identity.is_file():
            old = json.loads(self.identity.read_text(encoding="utf-8"))
            old.pop("chunk", None)  # what `batch.micro_batch_size: auto` came to
            if differing := _differing(old, identity):
                raise ConfigError(
                    f"{self.path} holds a run with other settings or data: {', '.join(differing)}",
                    "name another `out`, or remove that directory to begin anew",
                )
            return
        self.path.mkdir(parents=True, exist_ok=True)
        replace_text(self.identity, json.dumps(identity, indent=1) + "\n")

    def publish(self, embedder: Embedder, steps: int) -> None:
        """Puts the finished embedder in its place, whole."""
        new = staging_path(self.model)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        embedder.save(new)
        (new / "finished.json").write_text(json.dumps({"variant": self.variant, "steps": steps}) + "\n", encoding="utf-8")
        replace_directory(new, self.model)


def run_identity(config: TrainConfig, variant: Variant, records: Records, steps: int) -> dict[str, Any]:
    """What decides a training's result: settings, data and steps. Two runs that agree in it may share a directory."""
    settings = config.model_dump(mode="json", exclude=_FREE)
    for part, free in (
        ("data", ("workers", "prefetch", "candidate_cache", "image_roots")),
        ("batch", ("vision_cache_gib", "memory_share")),
    ):
        for key in free:
            settings[part].pop(key)
    if not config.data.skip_unreadable:  # runs that were begun before there was such a setting go on
        settings["data"].pop("skip_unreadable")
    if config.traces.contrastive != "teacher":  # decides the student's own traces, and so the losses
        settings["max_new_tokens"] = config.adaptive.max_new_tokens
    found = {"variant": variant, "steps": steps, "dataset_sha256": records.digest, "settings": settings}
    if variant == "always-reason" and config.data.always_reason_dataset is not None:
        found["reasoned_sha256"] = Records.load(config.data.always_reason_dataset).digest
    return found


def _differing(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [line for name in names for line in _differing(old.get(name), new.get(name), f"{key}.{name}" if key else name)]
    return [] if old == new else [f"{key.removeprefix('settings.')} was {old!r}, is {new!r}"]
