"""Checkpoints: everything that a run needs to resume as if it had not stopped. Written whole or not at all; no pickle.

step-00000200/  adapter, token row, processor, embedder.json, state.safetensors (optimiser, random state), state.json
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.files.atomic_directory import replace_directory, staging_path
from schemas.errors import InputError
from schemas.os_errors import refused_by_system
from trainer.model.embedder import EXTRAS, Embedder

_STATE: Final = "state.safetensors"
_META: Final = "state.json"


def save(
    directory: Path,
    step: int,
    embedder: Embedder,
    optimiser: torch.optim.Optimizer,
    keep: int,
    *,
    own: Mapping[str, str] | None = None,
    random: Sequence[Mapping[str, Tensor]] = (),
) -> Path:
    """Writes ``directory/step-…`` and removes all but the last `keep` checkpoints.

    own: the student's own traces. random: `random_state()` of every process, by rank [default: this one's].
    """
    directory.mkdir(parents=True, exist_ok=True)
    place = directory / f"step-{step:08d}"
    new = staging_path(place)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    embedder.save(new)
    tensors: dict[str, Tensor] = {
        f"{name}.{rank}": value for rank, state in enumerate(random or [random_state()]) for name, value in state.items()
    }
    for name, parameter in _trained_parameters(embedder):
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"{key}:{name}"] = value.detach().cpu().contiguous()
    save_file(tensors, new / _STATE)
    (new / _META).write_text(json.dumps({"step": step, "own": dict(own or {})}) + "\n", encoding="utf-8")
    replace_directory(new, place)
    for old in list_checkpoints(directory)[:-keep]:
        shutil.rmtree(old)
    return place


def list_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in directory.glob("step-*") if (path / _META).is_file())


def random_state() -> dict[str, Tensor]:
    """The state of this process's random generators."""
    state = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["rng.cuda"] = torch.cuda.get_rng_state()
    return state


def restore(place: Path, embedder: Embedder, optimiser: torch.optim.Optimizer, *, rank: int = 0) -> tuple[int, dict[str, str]]:
    """Loads a checkpoint into a freshly created embedder and optimiser; returns its step and the student's own traces.

    A process without a state in the checkpoint (there were fewer processes) keeps its fresh random state.
    """
    try:
        meta: dict[str, Any] = json.loads((place / _META).read_text(encoding="utf-8"))
        adapter = load_file(place / "adapter_model.safetensors")
        extras = load_file(place / EXTRAS)
        tensors = load_file(place / _STATE)
    except Exception as error:
        cause = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) if isinstance(error, MemoryError) else error
        if (refused := refused_by_system(cause)) is not None:
            raise InputError(f"the checkpoint {place} cannot be read: {refused.cause}", refused.remedy) from error
        raise InputError(
            f"the checkpoint {place} cannot be read ({type(error).__name__}: {error})",
            "remove that directory: the run resumes from the one before",
        ) from error
    set_peft_model_state_dict(embedder.peft, adapter)
    embedder.load_extras(extras)
    for name, parameter in _trained_parameters(embedder):
        state = {key.partition(":")[0]: value for key, value in tensors.items() if key.partition(":")[2] == name}
        if state:
            optimiser.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
            }
    if f"rng.cpu.{rank}" in tensors:
        torch.set_rng_state(tensors[f"rng.cpu.{rank}"])
    if f"rng.cuda.{rank}" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors[f"rng.cuda.{rank}"])
    return meta["step"], meta["own"]


def find_latest(directory: Path) -> Path | None:
    """The last complete checkpoint, or None. Removes what a killed process left half-written."""
    for path in directory.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)
    complete = list_checkpoints(directory)
    return complete[-1] if complete else None


def _trained_parameters(embedder: Embedder) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in embedder.named_parameters() if parameter.requires_grad]
