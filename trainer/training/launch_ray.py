"""Training on a Ray cluster: one process for each GPU (or each CPU worker), wherever Ray places it.

Every worker runs the same `train()` as under torchrun. The run's directory, the dataset and M-BEIR must be on storage that all
nodes see. A lost worker ends the training, or, with `restarts`, restarts the group, which goes on from the last checkpoint.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from schemas.errors import ConfigError, CotError
from schemas.training import TrainConfig


def train_on_ray(config: TrainConfig, workers: int, *, restarts: int = 0, quiet: bool = False) -> None:
    """Fits all variants of a config with `workers` processes. Errors of ours are raised here as they were raised there.

    restarts: of the whole group, whatever the error (Ray does not tell a lost node from a wrong setting).
    """
    import ray  # noqa: PLC0415 (only where it is asked for)
    from ray.train import FailureConfig, RunConfig, ScalingConfig  # noqa: PLC0415
    from ray.train.torch import TorchConfig, TorchTrainer  # noqa: PLC0415

    from pipeline.serving.ray_session import start_ray  # noqa: PLC0415

    started = not ray.is_initialized()
    start_ray(show_workers=not quiet)
    try:
        # the cluster's GPUs: this machine may have none
        on_gpu = config.device == "cuda" or (config.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
        kind = "GPU" if on_gpu else "CPU"
        if (held := ray.cluster_resources().get(kind, 0)) < workers:
            raise ConfigError(
                f"--ray-workers {workers}, but the Ray cluster has {held:.0f} {kind}s", "ask for fewer, or add nodes"
            )
        # Ray's own record of the run; everything of ours goes to config.out
        with tempfile.TemporaryDirectory() as own:
            TorchTrainer(
                _loop,
                train_loop_config={"config": config.model_dump(mode="json"), "directory": str(Path.cwd()), "quiet": quiet},
                torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
                scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpu),
                run_config=RunConfig(storage_path=own, failure_config=FailureConfig(max_failures=restarts)),
            ).fit()
    except Exception as error:
        raise _ours(error) from error
    finally:
        if started:
            ray.shutdown()


def _loop(given: dict[str, Any]) -> None:
    """In each worker: torch's process group is there already."""
    from trainer.training.train import train  # noqa: PLC0415

    os.chdir(Path(given["directory"]))  # a config's paths are relative to where the command was given
    config = TrainConfig.model_validate(given["config"])
    for variant in config.variants:
        train(config, variant, quiet=given["quiet"])


def _ours(error: BaseException) -> BaseException:
    """The error of ours that a worker raised, if one is behind this."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, CotError):
            return seen
        failures = getattr(seen, "worker_failures", None) or {}
        for failure in failures.values():
            if isinstance(found := _ours(failure), CotError):
                return found
        cause = getattr(seen, "cause", None)
        seen = cause if isinstance(cause, BaseException) else seen.__cause__
    return error
