"""Lets torchvision import beside a CPU build of torch.

The registry's torchvision is a CUDA build whose C++ operators do not load there, and importing it dies with "operator
torchvision::nms does not exist". Image processors need its transforms only, which are plain torch: with the two missing
schemas declared they work, with exact results. Where the real operators load, nothing is changed.
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
    """Declares torchvision's operators where the library that defines them cannot be loaded. Safe to call again."""
    import torch  # noqa: PLC0415 (heavy, and not needed where this is only imported)

    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    libraries = [*Path(found.origin).parent.glob("_C*.so"), *Path(found.origin).parent.glob("_C*.pyd")]
    with suppress(OSError):
        for library in libraries:
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", schema)
