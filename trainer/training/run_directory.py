"""A run's directory: its files, and the settings and data that a resumed run must share."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.files.atomic_directory import replace_directory, staging_path
from pipeline.files.durable import replace_text
from pipeline.files.state import read_json
from schemas.errors import ConfigError
from schemas.training import TrainConfig, Variant
from trainer.data.dataset import Records
from trainer.model.embedder import Embedder

_FREE: Final = {"out", "variants", "device", "checkpoint", "adaptive", "evaluation", "tensorboard", "trackers"}
"""Settings that may change between two runs of the same training."""
_LATER: Final = {
    "model": ("bidirectional_attention",),
    "data": ("skip_unreadable", "hold_out"),
    "loss": ("matryoshka", "distillation_weight"),
    "optimiser": ("kind", "lr_scaling"),
    "traces": ("dropout", "first_stage_steps"),
}
"""Settings that came later: at their default they are left out, so that runs from before them may resume."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The directory of one variant, below the config's `out`."""

    out: Path
    variant: Variant

    @property
    def path(self) -> Path:
        return self.out / self.variant

    @property
    def conditions(self) -> Path:
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
        """The log file of a process; rank 0 writes the training's."""
        return self.out / ("train.log" if rank == 0 else f"train-{rank}.log")

    def claim(self, conditions: dict[str, Any]) -> None:
        """Records the run's conditions. Raises ConfigError if the directory holds a run with others."""
        if self.conditions.is_file():
            old = read_json(self.conditions, f"remove {self.path} to start again")
            old.pop("chunk", None)  # the value found for `batch.micro_batch_size: auto`
            if differing := _differing(old, conditions):
                raise ConfigError(
                    f"{self.path} holds a run with other settings or data: {', '.join(differing)}",
                    "name another `out`, or remove that directory to start again",
                )
            return
        self.path.mkdir(parents=True, exist_ok=True)
        replace_text(self.conditions, json.dumps(conditions, indent=1) + "\n")

    def save_model(self, embedder: Embedder, steps: int) -> None:
        """Writes the finished embedder, whole or not at all."""
        new = staging_path(self.model)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        embedder.save(new)
        (new / "finished.json").write_text(json.dumps({"variant": self.variant, "steps": steps}) + "\n", encoding="utf-8")
        replace_directory(new, self.model)


def run_conditions(config: TrainConfig, variant: Variant, records: Records, steps: int) -> dict[str, Any]:
    """What determines a training's result: settings, data and steps. A run resumes only under the same conditions."""
    settings = config.model_dump(mode="json", exclude=_FREE)
    for part, free in (
        ("data", ("workers", "prefetch", "candidate_cache", "image_roots", "most_unreadable")),
        ("batch", ("vision_cache_gib", "memory_share")),
    ):
        for key in free:
            settings[part].pop(key)
    for part, keys in _LATER.items():
        fields = type(getattr(config, part)).model_fields
        for key in keys:
            if getattr(getattr(config, part), key) == fields[key].default:
                settings[part].pop(key)
    if not config.loss.distillation_weight:
        settings["loss"].pop("distillation_temperature")
    if config.optimiser.lr_scaling == "none":
        settings["optimiser"].pop("lr_batch_size")
    if config.data.hard_negatives == "mined":  # the records' digest is that of the file's content too
        settings["data"].pop("mined")
    else:
        settings["data"].pop("mined")
        settings["data"].pop("mined_per_query")
    if config.traces.contrastive != "teacher":  # limits the student's own traces, and so changes the losses
        settings["max_new_tokens"] = config.adaptive.max_new_tokens
    conditions = {"variant": variant, "steps": steps, "dataset_sha256": records.digest, "settings": settings}
    if variant == "always-reason" and config.data.always_reason_dataset is not None:
        conditions["reasoned_sha256"] = Records.load(config.data.always_reason_dataset).digest
    return conditions


def _differing(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [line for name in names for line in _differing(old.get(name), new.get(name), f"{key}.{name}" if key else name)]
    return [] if old == new else [f"{key.removeprefix('settings.')} was {old!r}, is {new!r}"]
