"""Where converted files are kept: derived data, safe to delete at any time."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """``$MBEIR_COT_CACHE``, else ``mbeir-cot`` in the user's cache directory."""
    if configured := os.environ.get("MBEIR_COT_CACHE"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mbeir-cot"
