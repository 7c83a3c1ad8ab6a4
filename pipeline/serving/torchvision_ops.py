"""Lets torchvision import beside a CPU build of torch.

The registry's torchvision is a CUDA build whose C++ operators do not load there, and importing it fails with "operator
torchvision::nms does not exist". Image processors need only its transforms, which are plain torch: with the two missing schemas
declared they work, with exact results. If the real operators load, nothing is changed.

This must happen in every process before torchvision is imported, including those that vLLM starts, so it is registered as an
extension that torch loads at the end of its own import (entry point group ``torch.backends``).
"""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def declare_missing_ops() -> None:
    """Declares torchvision's operators if torch is a CPU build and their library cannot be loaded."""
    import torch  # noqa: PLC0415 (torch itself calls this)

    if torch.version.cuda is not None:
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    with suppress(OSError):
        for library in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", schema)
