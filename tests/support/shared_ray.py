"""One Ray session for all builds of this process, because starting Ray and each worker takes seconds."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
_DIRECTORY: Final = tempfile.TemporaryDirectory(prefix="mbeir-cot-faults-")
FAULTS: Final = Path(_DIRECTORY.name) / "faults.json"
"""The file from which its workers read faults (see tests/faults/inject). No file: no faults."""

_started: list[str] = []


def share_ray() -> None:
    """Starts the session unless it runs. Ends any other Ray session that a test has left in this process."""
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
