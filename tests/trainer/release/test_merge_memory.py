"""The check of an export: the memory of its servers, and the routes that may differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.serving.vllm_command import arguments
from schemas.errors import ConfigError
from trainer.data.encoding import EncodedSequence
from trainer.release.merge import Sample, ServerPlan, server_config, sort_disagreements

ON_GPU = ServerPlan(torch.device("cuda:0"), "bfloat16", 8192, "")


@pytest.mark.parametrize(("free", "share"), [(79, 0.92), (62, 0.76), (40, 0.48)])
def test_servers_ask_for_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch, free: int, share: float) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free << 30, 79 << 30))
    command = arguments(server_config(ON_GPU, Path("export")), 8000)
    assert command[command.index("--gpu-memory-utilization") + 1] == str(share)


def test_a_full_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 79 << 30))
    with pytest.raises(ConfigError, match=r"1\.0 of 79\.0 GiB"):
        server_config(ON_GPU, Path("export"))


def test_only_routes_that_rounding_decides_may_differ() -> None:
    vector = np.zeros(2, np.float32)
    samples = [Sample(EncodedSequence(f"q{p}", (), ()), True, p > 0.5, vector, p) for p in (0.51, 0.55, 0.6, 0.0, 1.0, 0.5)]
    same = [False, False, False, False, False, True]
    assert sort_disagreements(samples, same, "bfloat16") == (["q0.51", "q0.55"], ["q0.6", "q0.0", "q1.0"])
    assert sort_disagreements(samples, same, "float32")[0] == []
