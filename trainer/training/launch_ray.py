"""Training on a Ray cluster: one process per GPU (or CPU worker), wherever Ray places it.

Every worker runs the same `train()` as under torchrun. The run's directory, the dataset and M-BEIR must be on storage that all
nodes share. A lost worker ends the training or, with `restarts`, restarts the group, which resumes from the last checkpoint.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from pipeline.progress_meter import is_quiet, quiet_progress
from schemas.errors import ConfigError, CotError
from schemas.training import TrainConfig


def train_on_ray(config: TrainConfig, workers: int, *, restarts: int = 0) -> None:
    """Trains all variants of a config with `workers` processes. A CotError in a worker is raised here.

    restarts: how often to restart the whole group, for any error (Ray does not distinguish a lost node from a wrong setting).
    """
    import ray  # noqa: PLC0415 (only if it is used)
    from ray.train import FailureConfig, RunConfig, ScalingConfig  # noqa: PLC0415
    from ray.train.torch import TorchConfig, TorchTrainer  # noqa: PLC0415

    from pipeline.serving.ray_session import start_ray  # noqa: PLC0415

    started = not ray.is_initialized()
    start_ray(show_workers=not is_quiet())
    try:
        # the cluster's GPUs: this machine may have none
        on_gpu = config.device == "cuda" or (config.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
        kind = "GPU" if on_gpu else "CPU"
        if (available := ray.cluster_resources().get(kind, 0)) < workers:
            raise ConfigError(
                f"--ray-workers {workers}, but the Ray cluster has {available:.0f} {kind}s", "ask for fewer, or add nodes"
            )
        # for Ray's own records; everything else goes to config.out
        with tempfile.TemporaryDirectory() as storage:
            TorchTrainer(
                _loop,
                train_loop_config={"config": config.model_dump(mode="json"), "directory": str(Path.cwd()), "quiet": is_quiet()},
                torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
                scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpu),
                run_config=RunConfig(storage_path=storage, failure_config=FailureConfig(max_failures=restarts)),
            ).fit()
    except Exception as error:
        raise _find_cot_error(error) from error
    finally:
        if started:
            ray.shutdown()


def _loop(given: dict[str, Any]) -> None:
    """Runs in each worker, within torch's process group."""
    from trainer.training.train import train  # noqa: PLC0415

    os.chdir(Path(given["directory"]))  # a config's paths are relative to the command's directory
    config = TrainConfig.model_validate(given["config"])
    with quiet_progress(given["quiet"]):
        for variant in config.variants:
            train(config, variant)


def _find_cot_error(error: BaseException) -> BaseException:
    """The CotError in a worker that caused `error`, or else `error` itself."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, CotError):
            return current
        failures = getattr(current, "worker_failures", None) or {}
        for failure in failures.values():
            if isinstance(cause := _find_cot_error(failure), CotError):
                return cause
        next_cause = getattr(current, "cause", None)
        current = next_cause if isinstance(next_cause, BaseException) else current.__cause__
    return error
