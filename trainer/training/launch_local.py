"""Training with several processes on this machine, without torchrun: one per GPU, or on the CPU with a share of its threads."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessException, spawn

from pipeline.progress_meter import is_quiet, quiet_progress
from schemas.errors import ConfigError, CotError
from schemas.os_errors import refused_by_system
from schemas.training import TrainConfig
from trainer.data.process_group import ProcessGroup, takes_gpu

_ERROR = "error"


def train_locally(config: TrainConfig, processes: int) -> None:
    """Trains all variants of a config with `processes` processes, which end when this one ends, for any reason.

    A CotError in a process, or what the system refused it, is raised here as a CotError; any other error is a ProcessException
    with its traceback.
    """
    on_gpu = takes_gpu(config.device)
    available = torch.cuda.device_count() if on_gpu else len(os.sched_getaffinity(0))
    if processes > available:
        raise ConfigError(
            f"--processes {processes}, but this machine has {available} {'GPUs' if on_gpu else 'CPUs'}",
            "ask for no more than it has",
        )
    # the rendezvous: this process opens it on a free port and keeps it
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as exchange:
        threads = None if on_gpu else max(1, available // processes)
        given = (processes, os.getpid(), store.port, config.model_dump(mode="json"), exchange, threads, is_quiet())
        try:
            spawn(_process, given, nprocs=processes)  # type: ignore[no-untyped-call]
        except ProcessException:
            if errors := [path for path in sorted(Path(exchange).iterdir()) if path.name.startswith(_ERROR)]:
                raise CotError(errors[0].read_text(encoding="utf-8")) from None
            raise


def _process(
    rank: int, processes: int, parent: int, port: int, given: dict[str, Any], exchange: str, threads: int | None, quiet: bool
) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # as under torchrun: no process opens the store
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    if threads is not None:
        torch.set_num_threads(threads)
    from trainer.training.train import train  # noqa: PLC0415

    config = TrainConfig.model_validate(given)
    try:
        with quiet_progress(quiet):
            for variant in config.variants:
                train(config, variant)
        ProcessGroup.join(config.device).leave()
    except Exception as error:
        if (known := _understood(error)) is None:
            raise
        Path(exchange, f"{_ERROR}-{rank}").write_text(str(known), encoding="utf-8")
        os._exit(2)  # at once: a regular exit would wait for the others


def _understood(error: Exception) -> CotError | None:
    """The error as people can act on it; None for any that is neither ours nor the system's."""
    if isinstance(error, CotError):
        return error
    if (refused := refused_by_system(error)) is None:
        return None
    place = getattr(error, "filename", None)
    return CotError(
        f"the training stopped: {refused.cause}" + (f": {place}" if place else ""),
        f"{refused.remedy}; then run the same command again: it goes on from the last checkpoint",
    )


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone: a parent that is killed with `kill -9` cannot end it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
