"""One Ray for all builds of this process: a start costs seconds, and another for each of its workers."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
_DIRECTORY: Final = tempfile.TemporaryDirectory(prefix="mbeir-cot-faults-")
FAULTS: Final = Path(_DIRECTORY.name) / "faults.json"
"""Where its workers look for faults (see tests/faults/inject). None are armed while it is absent."""

_started: list[str] = []


def share_ray() -> None:
    """Starts it, unless it runs. Another Ray of this process, which some test has left, is ended."""
    import ray

    from pipeline.serving.ray_session import start_ray

    if ray.is_initialized():
        if _started and ray.get_runtime_context().gcs_address == _started[-1]:
            return
        ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MBEIR_COT_FAULTS", str(FAULTS))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests" / "faults" / "inject"), str(ROOT)]))
        patch.delenv("RAY_ADDRESS", raising=False)
        start_ray()
    _started.append(ray.get_runtime_context().gcs_address)
